"""Chat with what a run trained and with its base: the same question to both, with the same sampling seed.

The generator is a process of its own. It starts when the screen opens and ends when the screen is left.
"""

import asyncio
from collections.abc import Callable
from secrets import randbelow
from threading import Lock
from time import monotonic
from typing import Any, ClassVar

from msgspec import Struct
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input, Static

from stackllama_engine.contract.chat_messages import SIDES, Delta, Done, Failure, Ready, Side
from stackllama_engine.contract.errors import StackllamaError, UsageError
from stackllama_engine.contract.run_dir import RunDir

from ...readers.generator import ChatEvent, ChatProcess, Ended, start_chat
from ...readings import checkpoint_steps
from ...sanitise import one_line, sanitise
from ...units import duration
from ..screen import ConsoleScreen
from ..widgets.cells import cut
from ..widgets.turn_list import Answer, Turn, TurnList
from .choose import ChooseScreen
from .confirm import AskScreen

TEMPERATURES = (0.0, 0.3, 0.7, 1.0, 1.3)
LENGTHS = (32, 64, 128, 256, 512, 1024)
RESULT = "result"

Start = Callable[[RunDir, str | None], ChatProcess]


_SEEDS = 1_000_000  # short enough to be typed again
_GREEDY = 0.01  # a temperature below it takes the likeliest token


def _loading(seconds: float) -> str:
    taken = f", {duration(seconds)}" if seconds >= 1 else ""
    return f"loading the model{taken}; a large one takes a while. You can type already."


class NotStarted(Struct, frozen=True):
    """A generator could not be started."""

    why: str
    way_out: str


class QuestionLine(Input):
    """The input line for questions; its one key is listed among those of the screen."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "submit", "ask", id="chat.ask", key_display="enter")]


class ChatScreen(ConsoleScreen):
    """A conversation with a run's result or one of its checkpoints.

    Args:
        run: the run.
        checkpoint: ``step-000100``; None: the result, or while there is none the newest checkpoint.
        start: starts a generator; raises StackllamaError or OSError.
    """

    HEADING = "chat"
    INTERVAL = 0.2  # pieces of an answer are read as they come
    WIDGETS_WITH_KEYS = ("TurnList", "QuestionLine")
    AUTO_FOCUS = "#prompt"
    DEFAULT_CSS = """
    ChatScreen {
        #status { height: 1; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; color: $text-muted; }
        #status.error { color: $error; text-style: bold; height: auto; max-height: 50%; text-wrap: wrap; }
        #bottom { height: auto; max-height: 2; padding: 0 1; color: $text-muted; }
        #prompt { height: 1; padding: 0 1; background: $panel; }
        &.-low #bottom { display: none; }
        &.-low #status { display: none; }
        &.-low #status.error { display: block; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "escape", "back", id="screen.back"),  # shown: the only way out of the line for questions
        Binding("i", "write", "write", id="chat.write", tooltip="Back to the input line"),
        Binding("x", "cancel", "cancel", id="chat.cancel", tooltip="Cancel the answers being generated"),
        Binding("R", "regenerate", "regenerate", id="chat.regenerate", tooltip="Ask the last question once more"),
        Binding("t", "temperature", "temperature", id="chat.temperature"),
        Binding("s", "seed", "seed", id="chat.seed", tooltip="One seed for every answer, or a new one each time"),
        Binding("p", "system", "system prompt", id="chat.system"),
        Binding("n", "length", "max tokens", id="chat.length"),
        Binding("c", "choose", "checkpoint", id="chat.choose"),
        Binding("r", "restart", "restart generator", id="chat.restart", show=False),
    ]

    def __init__(self, run: RunDir, checkpoint: str | None = None, start: Start = start_chat) -> None:
        super().__init__()
        self.run_dir = run
        self.checkpoint = checkpoint
        self.temperature = 1.0
        self.length = 128
        self.process: ChatProcess | None = None
        self._start = start
        self._guard = Lock()  # of `process`, `_wanted` and `_left`
        self._wanted = True
        self._left = False
        self._seed = randbelow(_SEEDS)
        self._fixed_seed: int | None = None
        self._system: str | None = None
        self._last_prompt = ""
        self._said = ("", "")
        self._loading_since: float | None = monotonic()

    def body(self) -> ComposeResult:
        """Compose status, conversation, settings and the input line."""
        yield Static(_loading(0), id="status", markup=False)
        yield TurnList(id="turns")
        yield Static("", id="bottom", markup=False)
        line = QuestionLine(
            placeholder="type a question; enter asks, escape leaves the input", compact=True, id="prompt"
        )
        line.cursor_blink = False
        yield line

    def on_mount(self) -> None:
        """Say what is being loaded; the thread of :meth:`poll` starts it."""
        self.call_next(self._head)  # after the heading that every screen begins with
        self._show_settings()
        self.set_interval(1.0, self.show_loading)

    def show_loading(self) -> None:
        """Say for how long the model has been loading."""
        if self._loading_since is not None:
            self._said = _loading(monotonic() - self._loading_since), ""
            self._show_status()

    def on_resize(self, event: events.Resize) -> None:
        """Give questions and answers the space where there is little."""
        self.set_class(event.size.height < 10, "-low")

    async def on_unmount(self) -> None:
        """End the generator, even one that is just being started."""
        await asyncio.to_thread(self._leave)

    def _leave(self) -> None:
        with self._guard:
            self._left = True
            if self.process:
                self.process.close()

    # reading, in a thread

    def poll(self) -> list[ChatEvent] | NotStarted | None:
        """Start the wanted generator, or return what the running one sent."""
        with self._guard:
            if self._left:
                return None
            if self._wanted:
                self._wanted = False
                return self._begin()
            return (self.process.poll() or None) if self.process else None

    def _begin(self) -> list[ChatEvent] | NotStarted:
        if self.process:
            self.process.close()
            self.process = None
        try:
            self.process = self._start(self.run_dir, self.checkpoint)
        except (StackllamaError, OSError) as error:
            way_out = "c: choose a checkpoint" if isinstance(error, UsageError) else "r: try again"
            return NotStarted(_sentence(str(error)), f"{way_out}, esc: back")
        return []

    # showing

    def render_update(self, update: Any) -> None:
        """Add pieces of answers to their turns, or say why there are none."""
        if isinstance(update, NotStarted):
            self._status(update.why, update.way_out)
            return
        turns = self.query_one(TurnList)
        changed: set[int] = set()
        for event in update:
            match event:
                case Ready():
                    self._ready(event)
                case Ended():
                    self._ended(event)
                case Delta() | Done() | Failure():
                    position_and_turn = turns.turn(event.id) if event.id is not None else None
                    if position_and_turn:
                        position_and_turn[1].take(event, alone=self._is_scored_in_part)
                        changed.add(position_and_turn[0])
                    elif isinstance(event, Failure):
                        self.say(event.error, error=True)
                case _:
                    pass
        if changed:
            turns.changed(min(changed))

    @property
    def _is_scored_in_part(self) -> bool:
        ready = self.process.ready if self.process else None
        return ready is not None and ready.rewards and ready.functions

    def _ready(self, ready: Ready) -> None:
        what = " and ".join(ready.sides)
        where = f", {ready.checkpoint}" if ready.checkpoint else ""
        note = f"; {ready.note}" if ready.note else ""
        model = cut(ready.model, 40, keep_end=True)
        self._status(f"{what} of {model}{where}, on {ready.device}{note}")
        self._show_settings()
        self.refresh_bindings()  # whether there is a system prompt is known now
        turns = self.query_one(TurnList)
        for turn in turns.turns:  # asked while it was loading, before it was known who answers
            if turn.open and not any(answer.text for answer in turn.answers.values()):
                turn.answers = {side: turn.answers[side] for side in ready.sides if side in turn.answers}
        if turns.turns:
            turns.changed(0)

    def _ended(self, event: Ended) -> None:
        self._status(_sentence(event.message), "r: restart, c: choose a checkpoint, esc: back")
        self._give_up(event.message)

    def _give_up(self, why: str) -> None:
        turns = self.query_one(TurnList)
        waiting = [index for index, turn in enumerate(turns.turns) if turn.open]
        for index in waiting:
            turns.turns[index].error = why
        for turn in turns.turns:  # ids begin again with the next process
            turn.id = 0
        if waiting:
            turns.changed(waiting[0])

    def _status(self, text: str, way_out: str = "") -> None:
        """Set the status; ``way_out`` names keys where something is wrong."""
        self._said, self._loading_since = (text, way_out), None
        self._show_status()

    def _show_status(self) -> None:
        """Show the status; while the input has the focus, keys of a way out are text, so say first how to leave it."""
        text, way_out = self._said
        if way_out and self.query_one("#prompt").has_focus:
            way_out = f"esc leaves the input, then {way_out}"
        status = self.query_one("#status", Static)
        status.set_class(bool(way_out), "error")
        status.update(one_line(f"{text} {way_out}".strip()))

    def on_descendant_focus(self) -> None:
        """Update the status; see :meth:`_show_status`."""
        self._on_focus_moved()

    def on_descendant_blur(self) -> None:
        """Update the status; see :meth:`_show_status`."""
        self._on_focus_moved()

    def _on_focus_moved(self) -> None:
        if self._said[1]:
            self._show_status()

    def _show_settings(self) -> None:
        seed = "new seed per answer" if self._fixed_seed is None else f"seed {self._fixed_seed}"
        parts = [f"temperature {self.temperature:g} (t)", f"max {self.length} tokens (n)", f"{seed} (s)"]
        ready = self.process.ready if self.process else None
        if ready is not None and ready.prompt_format != "chat":
            parts.append(f"format {ready.prompt_format}")
        elif ready is not None:
            system = one_line((ready.system if self._system is None else self._system) or "")
            parts.append(f"system prompt (p): {cut(system, 60) if system else 'none'}")
        self.query_one("#bottom", Static).update(" · ".join(parts))

    def _head(self) -> None:
        self.set_heading(self.run_dir.id, self.checkpoint or "")

    # keys

    def shows_key(self, binding: Binding) -> bool:
        """Return whether the footer offers a key: only where it can do something."""
        if binding.id == "chat.system":
            ready = self.process.ready if self.process else None
            return ready is None or ready.prompt_format == "chat"
        return binding.id not in ("chat.cancel", "chat.regenerate") or bool(self._last_prompt)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Ask both sides."""
        prompt = event.value.strip()
        if prompt and self._ask(prompt):
            self.query_one("#prompt", Input).value = ""

    def _ask(self, prompt: str) -> bool:
        """Ask both sides; return whether that was possible."""
        if self.process is None or not self.process.alive:
            self.say("The generator is not running. Escape leaves the input; then r: restart, c: choose a checkpoint.")
            return False
        sides = self.process.ready.sides if self.process.ready else list(SIDES)
        seed = self._seed if self._fixed_seed is None else self._fixed_seed
        try:
            question = self.process.ask(
                prompt,
                sides,
                max_new_tokens=self.length,
                temperature=self.temperature,
                seed=seed,
                system=self._system,
            )
        except StackllamaError as error:
            self.say(str(error), error=True)
            return False
        self._seed = (self._seed + 1) % _SEEDS
        self._last_prompt = prompt
        self.refresh_bindings()
        settings = f"temperature {self.temperature:g}"
        if self.temperature >= _GREEDY:
            settings = f"seed {seed} · {settings}"
        answers: dict[Side, Answer] = {side: Answer() for side in sides}
        self.query_one(TurnList).add(Turn(id=question, prompt=sanitise(prompt), answers=answers, settings=settings))
        return True

    def action_write(self) -> None:
        """Focus the input line."""
        self.query_one("#prompt", Input).focus()

    def action_cancel(self) -> None:
        """Cancel the answers being generated."""
        if not self._cancel():
            self.say("Nothing is being generated.")

    def _cancel(self) -> bool:
        going_on = [turn for turn in self.query_one(TurnList).turns if turn.open]
        if self.process:
            for turn in going_on:
                self.process.cancel(turn.id)
        return bool(going_on)

    def action_back(self) -> None:
        """Cancel an answer; without one leave the input, then the screen."""
        if self._cancel():
            return
        if self.query_one("#prompt", Input).has_focus:
            self.query_one(TurnList).focus()
        else:
            super().action_back()

    def action_regenerate(self) -> None:
        """Ask the last question once more; the earlier answers stay above."""
        if not self._last_prompt:
            self.say("Nothing has been asked yet.")
        elif not self._ask(self._last_prompt):
            return
        elif self.temperature < _GREEDY:
            self.say("At temperature 0 the answers change only with other settings. t: change the temperature.")
        elif self._fixed_seed is not None:
            self.say("The seed is fixed: the answers change only with other settings. s: change the seed.")

    def action_seed(self) -> None:
        """Fix the sampling seed, or draw a new one for every answer again."""

        def check(text: str) -> str:
            return "" if _seed_of(text) is not None or not text.strip() else "expected a whole number, 0 or more"

        def answered(text: str | None) -> None:
            if text is not None:
                self._fixed_seed = _seed_of(text)
                self._show_settings()

        value = "" if self._fixed_seed is None else str(self._fixed_seed)
        question = "Sampling seed of every answer; empty: a new one each time"
        self.console_app.push_screen(AskScreen(question, value, placeholder="e.g. 7", check=check), answered)

    def action_system(self) -> None:
        """Ask for a system prompt in place of the run's own."""
        ready = self.process.ready if self.process else None
        if ready is None:
            self.say("The model is still being loaded.")
        elif ready.prompt_format != "chat":
            self.say(f"Only the format chat has a system prompt; this run's prompt_format is {ready.prompt_format}.")
        else:

            def answered(text: str | None) -> None:
                if text is not None:
                    self._system = text.strip() or None
                    self._show_settings()

            question = "System prompt of the next questions; empty: the run's own"
            own = ready.system or "none"
            self.console_app.push_screen(AskScreen(question, self._system or "", placeholder=own), answered)

    def action_temperature(self) -> None:
        """Choose the next of a few temperatures; 0 takes the likeliest token each time."""
        self.temperature = _next(TEMPERATURES, self.temperature)
        self._show_settings()

    def action_length(self) -> None:
        """Choose the next of a few limits."""
        self.length = _next(LENGTHS, self.length)
        self._show_settings()

    def action_restart(self) -> None:
        """Restart the generator."""
        self._load(self.checkpoint)

    def action_choose(self) -> None:
        """Choose the result or one of the checkpoints."""
        self.begin(self._choose(), group="choose", exclusive=True)

    async def _choose(self) -> None:
        choices = await asyncio.to_thread(_choices, self.run_dir)
        if not choices:
            self.say("This run has neither a result nor a checkpoint yet.")
            return

        def chosen(name: str | None) -> None:
            if name is not None:
                self._load(None if name == RESULT else name)

        self.console_app.push_screen(ChooseScreen("chat with", choices, self.checkpoint or RESULT), chosen)

    def _load(self, checkpoint: str | None) -> None:
        """Have the polling thread end this generator and start another one."""
        self._give_up("the generator was restarted")
        self.checkpoint = checkpoint
        self._wanted = True
        self._loading_since = monotonic()
        self.show_loading()
        self._head()
        turns = self.query_one(TurnList)
        if turns.turns:
            turns.add(Turn(id=0, prompt=f"— from here on: {checkpoint or RESULT} —", answers={}))


def _choices(run: RunDir) -> list[tuple[str, str]]:
    """Return the result where there is one, then checkpoints, newest first."""
    result = [(RESULT, "the finished run's model")] if run.adapter.is_dir() or run.merged.is_dir() else []
    return [*result, *((f"step-{step:06d}", f"checkpoint after step {step:,}") for step in checkpoint_steps(run)[::-1])]


def _next(values: tuple[Any, ...], value: Any) -> Any:
    return values[(values.index(value) + 1) % len(values)]


def _seed_of(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and int(text) < 1 << 32 else None


def _sentence(text: str) -> str:
    text = one_line(text)
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
