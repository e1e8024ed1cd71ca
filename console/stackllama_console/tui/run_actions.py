"""Actions on a run, the same on every screen: stop, save, pause, sample, change, resume, delete, clone, chat.

Each is carried out in a thread; its outcome is one notice. Nothing here waits for a run to obey.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from stackllama_engine.contract import requests
from stackllama_engine.contract.checkpoints import sealed, step_of
from stackllama_engine.contract.children import children_of
from stackllama_engine.contract.errors import DamagedError, FindingsError, StackllamaError, UnconfirmedError
from stackllama_engine.contract.requests import Ask
from stackllama_engine.contract.run_dir import ENDED, Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.ownership import check_run
from stackllama_engine.launch.reconcile import reconcile
from stackllama_engine.launch.run_requests import ask, check_change

from ..request_texts import NOTHING_DAMAGED, already_ended, asked_to_stop, delete_question, dependents, promise
from ..sanitise import one_line
from .screen import ConsoleScreen
from .screens.confirm import AskScreen, ConfirmScreen

if TYPE_CHECKING:
    from stackllama_engine.launch.fork import Fork

_STEPS = 8  # of checkpoints that a dialog names


class RunActions:
    """The actions of one screen on runs of one home."""

    def __init__(self, screen: ConsoleScreen, home: Home) -> None:
        self.screen = screen
        self.home = home

    def stop(self, run_id: str) -> None:
        """Ask for confirmation, then request that the run saves and stops."""
        queued = False

        def refusal() -> str:
            nonlocal queued
            check_run(self.home.run(run_id))
            state = reconcile(self.home.run(run_id))
            queued = state.phase == "queued"
            return already_ended(run_id, state) if state.has_ended else ""

        def question() -> str:
            note = "It is queued and has not begun" if queued else "It saves a checkpoint first"
            return f"Stop {run_id}?\n\n{note}; r: resume later."

        def work() -> str:
            from stackllama_engine.launch.run_requests import stop

            state = stop(self.home.run(run_id), wait=False)
            if state.has_ended:
                return f"{run_id} has left its queue" if queued else already_ended(run_id, state)
            return f"{run_id}: {asked_to_stop(queued=queued)}"

        asking = self._unless(refusal, lambda: self._ask(question(), "stop run", work))
        self.screen.begin(asking, group="actions")

    def save(self, run_id: str) -> None:
        """Request a checkpoint at the next step."""
        self._request(run_id, "save")

    def sample(self, run_id: str) -> None:
        """Request samples for a few held-out prompts now."""
        self._request(run_id, "sample")

    def pause(self, run_id: str, paused: bool) -> None:
        """Request a pause after the current step; where the run is paused, that it continues."""
        self._request(run_id, "continue" if paused else "pause")

    def change(self, run_id: str) -> None:
        """Ask for a value that a running stage can change, and request it."""
        keys: list[str] = []

        def refusal() -> str:
            keys.extend(_changeable(self.home.run(run_id)))
            return ""

        def check(text: str) -> str:
            try:
                check_change(self.home.run(run_id), text)
            except StackllamaError as error:
                return str(error)
            return ""

        def answered(text: str | None) -> None:
            if text is not None:
                self._request(run_id, "set", text)

        def ask_for_value() -> None:
            question = f"Set a value of {run_id} while it runs: {' or '.join(keys)}"
            asking = AskScreen(
                question,
                placeholder="key=value, e.g. learning_rate=1e-5",
                check=check,
                answers="enter  set     esc  cancel",
            )
            self.screen.console_app.push_screen(asking, answered)

        self.screen.begin(self._unless(refusal, ask_for_value), group="actions")

    def _request(self, run_id: str, what: Ask, change: str | None = None) -> None:
        def work() -> str:
            return promise(ask(self.home.run(run_id), what, change).id, what, change)

        self._do(work)

    def resume(self, run_id: str) -> None:
        """Start a new attempt from the newest checkpoint; ask first where the recipe or the reward code has changed."""
        self.screen.begin(self._resume(run_id), group="actions")

    async def _resume(self, run_id: str, *, recipe_changed: bool = False, function_changed: bool = False) -> None:
        from stackllama_engine.launch.function_hash import unrecorded_notice
        from stackllama_engine.launch.launcher import resume
        from stackllama_engine.launch.recipe_changes import load_own_recipe

        def work() -> str:
            run = self.home.run(run_id)
            notice = unrecorded_notice(run, load_own_recipe(run, run.read_state().stage))
            resume(self.home, run_id, recipe_changed=recipe_changed, function_changed=function_changed)
            waiting = run.read_state().waiting
            return notice or (f"{run_id} is {waiting}" if waiting else f"{run_id} resumed")

        def confirm(key: str) -> None:
            confirmed = {"recipe_changed": recipe_changed, "function_changed": function_changed} | {key: True}
            self.screen.begin(self._resume(run_id, **confirmed), group="actions")

        try:
            message = await asyncio.to_thread(work)
        except UnconfirmedError as unconfirmed:
            text, key = "\n\n".join([unconfirmed.question, *unconfirmed.reasons]), unconfirmed.key
            self._ask_then(text, "resume run", lambda: confirm(key))
        except (StackllamaError, OSError, TimeoutError) as error:
            self.screen.say(str(error), error=True)
        else:
            self.screen.say(one_line(message))

    def repair(self, run_id: str) -> None:
        """Rebuild damaged files from the others."""

        def work() -> str:
            from stackllama_engine.launch.repair import repair

            return f"{run_id}: {' '.join(repair(self.home, run_id)) or NOTHING_DAMAGED}"

        self._do(work)

    def delete(self, run_id: str, then: Callable[[], None] | None = None) -> None:
        """Ask, naming what else goes or depends on it; then delete."""
        self.screen.begin(self._delete(run_id, then), group="delete", exclusive=True)

    async def _delete(self, run_id: str, then: Callable[[], None] | None) -> None:
        from stackllama_engine.launch.remove import remove, users_of

        try:
            await asyncio.to_thread(check_run, self.home.run(run_id))
            phase, stage = await asyncio.to_thread(phase_and_stage, self.home.run(run_id))
            if phase not in (*ENDED, "damaged"):
                self.screen.say(f"{run_id} is {phase}; stop it first (x), then delete it", error=True)
                return
            users = await asyncio.to_thread(users_of, self.home, run_id)
            run = self.home.run(run_id)
            stages = await asyncio.to_thread(children_of, run) if stage is Stage.PIPELINE else []
            children = [child.id for child in stages]
            size = await asyncio.to_thread(size_text, [run, *stages])
        except (StackllamaError, OSError, TimeoutError) as error:
            self.screen.say(str(error), error=True)
            return
        question = f"{delete_question(run_id)}\n\n{size}"
        others = [user for user in users if user not in children]
        if children:
            question += f"\nIts {len(children)} stage{'s are' if len(children) > 1 else ' is'} deleted too."
        if others:
            question += "\n" + dependents([*others[:4], *(["…"] if len(others) > 4 else [])])

        def work() -> str:
            removed = remove(self.home, run_id)
            return f"deleted: {run_id}" + (f" and {len(removed) - 1} of its stages" if len(removed) > 1 else "")

        self._ask(question, "delete run", work, then)

    def clone(self, run_id: str) -> None:
        """Open its recipe in the launch form."""
        self.screen.console_app.open_launch(run_id)

    def fork(self, run_id: str) -> None:
        """Ask at which checkpoint and with which keys, and start a run from there."""
        steps: list[int] = []
        ended = False

        def refusal() -> str:
            nonlocal ended
            ended = self.home.run(run_id).read_state().phase == "finished"
            check_run(self.home.run(run_id))
            steps.extend(map(step_of, sealed(self.home.run(run_id).checkpoints)))
            return "" if steps else f"{run_id} has no checkpoint to fork at"

        def check(text: str) -> str:
            try:
                self._plan_fork(run_id, text)
            except FindingsError:  # which can be allowed
                return ""
            except StackllamaError as error:
                return str(error)
            return ""

        def answered(text: str | None) -> None:
            if text is not None:
                self.screen.begin(self._fork(run_id, text), group="actions")

        def ask_for_changes() -> None:
            shown = [str(step) for step in steps[-_STEPS:]]
            question = f"Fork {run_id}: a new run from its checkpoint of step {' or '.join(shown)}, with changed keys"
            newest = (
                steps[-2] if ended and len(steps) > 1 else steps[-1]
            )  # after the last step there is nothing to train
            asking = AskScreen(
                question,
                value=f"{newest} ",
                placeholder="step key=value …, e.g. 200 kl_coef=0.1",
                check=check,
                answers="enter  fork     esc  cancel",
            )
            self.screen.console_app.push_screen(asking, answered)

        self.screen.begin(self._unless(refusal, ask_for_changes), group="actions")

    def _plan_fork(self, run_id: str, text: str, allow: Sequence[str] = ()) -> "Fork":
        from stackllama_engine.launch.fork import plan_fork

        first, *rest = text.split() or [""]
        step, words = (int(first), rest) if first.isdecimal() else (None, [first, *rest] if first else [])
        return plan_fork(self.home, self.home.run(run_id), step, words, None, allow=allow)

    async def _fork(self, run_id: str, text: str, allow: Sequence[str] = ()) -> None:
        from stackllama_engine.launch.fork import launch_fork

        def work() -> str:
            fork = self._plan_fork(run_id, text, allow)
            run = launch_fork(fork)
            self.screen.console_app.launched = run.id
            return f"{run.id} continues from step {fork.origin.step:,} of {run_id}"

        try:
            message = await asyncio.to_thread(work)
        except FindingsError as error:
            names = error.names
            question = f"{error.findings}\n\nFork all the same?"
            again = partial(self._fork, run_id, text, names)
            self._ask_then(question, "allow and fork", lambda: self.screen.begin(again(), group="actions"))
        except (StackllamaError, OSError, TimeoutError) as error:
            self.screen.say(str(error), error=True)
        else:
            self.screen.say(one_line(message))

    def samples(self, run_id: str) -> None:
        """Open the browser of its samples, of a pipeline the newest that a stage wrote."""
        self.screen.begin(self._samples(run_id), group="samples", exclusive=True)

    async def _samples(self, run_id: str) -> None:
        try:
            run = await asyncio.to_thread(_run_with_samples, self.home.run(run_id))
        except (StackllamaError, OSError, TimeoutError) as error:
            self.screen.say(str(error), error=True)
        else:
            self.screen.console_app.open_samples(run)

    def chat(self, run_id: str) -> None:
        """Open a chat with what it trained."""
        self._open(run_id, self.screen.console_app.open_chat)

    def _open(self, run_id: str, opener: Callable[[RunDir], None]) -> None:
        try:
            opener(self.home.run(run_id))
        except StackllamaError as error:
            self.screen.say(str(error), error=True)

    def _ask(self, question: str, action: str, work: Callable[[], str], then: Callable[[], None] | None = None) -> None:
        self._ask_then(question, action, lambda: self._do(work, then))

    def _ask_then(self, question: str, action: str, then: Callable[[], None]) -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                then()

        self.screen.console_app.push_screen(ConfirmScreen(question, action), answered)

    async def _unless(self, refusal: Callable[[], str], then: Callable[[], None]) -> None:
        """Show why something is refused, or do it."""
        try:
            refused = await asyncio.to_thread(refusal)
        except (StackllamaError, OSError, TimeoutError) as error:
            refused = str(error)
        if refused:
            self.screen.say(refused, error=True)
        else:
            then()

    def _do(self, work: Callable[[], str], then: Callable[[], None] | None = None) -> None:
        self.screen.begin(self._carry_out(work, then), group="actions")

    async def _carry_out(self, work: Callable[[], str], then: Callable[[], None] | None) -> None:
        try:
            message = await asyncio.to_thread(work)
        except (StackllamaError, OSError, TimeoutError) as error:
            self.screen.say(str(error), error=True)
        else:
            self.screen.say(one_line(message))
            if then:
                then()


def _run_with_samples(run: RunDir) -> RunDir:
    """Return the newest stage of a pipeline that has samples; the run itself where there is none, or it is a stage."""
    return next((stage for stage in reversed(children_of(run)) if stage.samples_file.exists()), run)


def _changeable(run: RunDir) -> tuple[str, ...]:
    """Return the keys that can change now; a run that has none is refused before anything is typed.

    Raises:
        RefusedError: it has ended, its stage does not train, or it is another user's.
    """
    check_run(run)
    state = reconcile(run)
    if state.has_ended or state.stage is not Stage.PIPELINE:
        requests.check(run.id, state, "set")
        return requests.SETTABLE[state.stage]
    at_work = next((one for stage in reversed(children_of(run)) if not (one := reconcile(stage)).has_ended), None)
    if at_work and at_work.stage in requests.SETTABLE:
        return requests.SETTABLE[at_work.stage]
    return requests.SETTABLE[Stage.PPO]  # between two stages, or in a merge: what is typed is checked then


def phase_and_stage(run: RunDir) -> tuple[str, Stage | None]:
    """Return the reconciled phase, ``damaged`` where that cannot be read, which deleting checks again; the stage."""
    from stackllama_engine.launch.repair import stage_of

    try:
        state = reconcile(run)
    except DamagedError:
        return "damaged", stage_of(run)
    return state.phase, state.stage


def size_text(runs: list[RunDir]) -> str:
    """Return what these runs take on disk, as a sentence."""
    from ..units import size

    files = (path for run in runs for path in run.path.rglob("*") if path.is_file() and not path.is_symlink())
    total = sum(path.stat().st_size for path in files)
    return f"{size(total)} on disk."
