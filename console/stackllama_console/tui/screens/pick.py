"""Choosing a model or a run: type to filter, or type a hub id or a path that is in no list."""

import asyncio
from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from ...readers.choices import Choice, matching
from ...sanitise import one_line, sanitise
from ..widgets.model_list import ModelList
from ..widgets.path_completer import complete

_PAUSE = 0.12  # seconds after the last keystroke before the disk is asked about what was typed
_PATH_BEGINS = ("/", "~", "./", "../")
_LOOKING = "checking …"


Typed = Callable[[str], list[Choice]]


class PickScreen(ModalScreen[str | None]):
    """Returns the value chosen; None when cancelled.

    Args:
        title: what is chosen.
        choices: what is known now; :meth:`add` brings more.
        chosen: the value that is in use.
        typed: what a typed text names (a folder of models names several), asked in a thread; None where only listed
            values are of use.
        hint: what may be typed.
        paths: whether a path may be typed, which tab completes.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "cancel", id="pick.leave"),
        Binding("tab", "complete", "complete path", id="pick.complete", show=False),
        Binding("down,ctrl+n", "move(1)", "next", id="pick.down", show=False, priority=True),
        Binding("up", "move(-1)", "previous", id="pick.up", show=False, priority=True),
        Binding("pagedown", "move(8)", "page down", id="pick.page_down", show=False, priority=True),
        Binding("pageup", "move(-8)", "page up", id="pick.page_up", show=False, priority=True),
    ]
    DEFAULT_CSS = """
    PickScreen #pick {
        width: 84; max-width: 100%; height: 80%; border: round $primary; background: $surface; padding: 0 1;
    }
    PickScreen #pick-note { height: auto; max-height: 3; color: $text-muted; }
    PickScreen ModelList { margin-top: 1; }
    """

    def __init__(
        self,
        title: str,
        choices: Sequence[Choice],
        chosen: str = "",
        *,
        typed: Typed | None = None,
        hint: str = "",
        paths: bool = True,
    ) -> None:
        super().__init__()
        self._title = sanitise(title)
        self._choices = list(choices)
        self._chosen = chosen
        self._typed = typed
        self._hint = hint
        self._paths = paths and typed is not None
        self._ready = False
        self._names = ("", "")  # a completed path, and its candidates
        self._typed_choices: list[Choice] = []  # what was typed, as choices of its own

    def compose(self) -> ComposeResult:
        """Lay out the input line, the list, and a note on the cursor's line."""
        with Vertical(id="pick") as box:
            box.border_title = self._title
            box.border_subtitle = f"enter selects,{' tab completes a path,' if self._paths else ''} esc cancels"
            line = Input(placeholder=self._hint or "type to filter", compact=True, max_length=4096)
            line.cursor_blink = False
            yield line
            yield ModelList(id="pick-list")
            yield Static("", id="pick-note", markup=False)

    def on_mount(self) -> None:
        """Render the list without a filter."""
        self.query_one(ModelList).can_focus = False
        self._ready = True
        self._show()

    def add(self, choices: Sequence[Choice]) -> None:
        """Take the longer list of choices."""
        self._choices = list(choices)
        if self._ready and self.is_current:
            self._show()

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        event.stop()
        text = event.value.strip()
        self._typed_choices = [Choice(value=text, title=one_line(text), facts=_LOOKING)] if self._typed and text else []
        self._show(from_top=True)
        if self._typed is not None:
            self.run_worker(self._look_at(text), group="typed", exclusive=True)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if current := self.query_one(ModelList).current:
            self.dismiss(current.value)

    @on(ModelList.Chosen)
    def _model_chosen(self, event: ModelList.Chosen) -> None:
        event.stop()
        self.dismiss(event.choice.value)

    @on(ModelList.OptionHighlighted)
    def _highlighted(self, event: ModelList.OptionHighlighted) -> None:
        event.stop()
        self._note()

    def action_move(self, lines: int) -> None:
        """Move the cursor of the list while the line keeps the keys."""
        rows = self.query_one(ModelList)
        if rows.choices:
            rows.highlighted = min(max(0, (rows.highlighted or 0) + lines), len(rows.choices) - 1)

    def action_complete(self) -> None:
        """Complete the path that is typed."""
        self.run_worker(complete(self.query_one(Input), self._say_names), group="complete", exclusive=True)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer completion where a path may be typed."""
        return self._paths if action == "complete" else True

    def _say_names(self, names: str) -> None:
        self._names = (self.query_one(Input).value, names)
        self._note()

    def action_leave(self) -> None:
        """Cancel."""
        self.dismiss(None)

    def _show(self, from_top: bool = False) -> None:
        text = self.query_one(Input).value.strip()
        shown = matching(self._choices, text)
        listed = {choice.value for choice in shown}
        typed = [choice for choice in self._typed_choices if choice.value not in listed]
        shown = [*typed, *shown] if text.startswith(_PATH_BEGINS) else [*shown, *typed]
        self.query_one(ModelList).show(shown, self._chosen, cursor=0 if from_top and shown else None)
        self._note()

    def _note(self) -> None:
        current = self.query_one(ModelList).current
        completed, names = self._names
        note = current.warning if current else "no match"
        note = names if names and completed == self.query_one(Input).value else note
        self.query_one("#pick-note", Static).update(note)

    async def _look_at(self, text: str) -> None:
        await asyncio.sleep(_PAUSE)
        if self._typed is None or not text:
            return
        choices = await asyncio.to_thread(self._typed, text)
        if self.is_current and text == self.query_one(Input).value.strip():
            self._typed_choices = choices
            self._show()
