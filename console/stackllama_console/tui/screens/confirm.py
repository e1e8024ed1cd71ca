"""Dialogs: a yes-or-no confirmation, and one line of text."""

import asyncio
from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from ...sanitise import one_line, sanitise


class ConfirmScreen(ModalScreen[bool]):
    """Asks for a yes; `j` and `k` scroll a question that is longer than the screen.

    Args:
        question: what is asked, plain text; may have several lines.
        action: what `y` does, one or two words.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes", id="confirm.yes"),
        Binding("n,escape,q", "answer(False)", "cancel", id="confirm.no"),
        Binding("j,down", "scroll(1)", "down", id="confirm.down", show=False),
        Binding("k,up", "scroll(-1)", "up", id="confirm.up", show=False),
        Binding("g,home", "end(False)", "top", id="confirm.top", show=False),
        Binding("G,end", "end(True)", "bottom", id="confirm.bottom", show=False),
    ]
    DEFAULT_CSS = """
    ConfirmScreen #confirm { padding: 1 1 1 2; scrollbar-size-vertical: 1; }
    ConfirmScreen #confirm .answers { dock: bottom; margin: 0; }
    """

    def __init__(self, question: str, action: str) -> None:
        super().__init__()
        self._question = sanitise(question)
        self._action = action

    def compose(self) -> ComposeResult:
        """Lay out the question and its two answers."""
        with VerticalScroll(id="confirm", can_focus=False):
            yield Static(self._question, markup=False)
            yield Static(f"y  {self._action}     n  cancel", markup=False, classes="answers")

    def action_answer(self, yes: bool) -> None:
        """Return the answer."""
        self.dismiss(yes)

    def action_scroll(self, lines: int) -> None:
        """Scroll a question that is longer than the screen."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)

    def action_end(self, bottom: bool) -> None:
        """Scroll to the first or the last line."""
        scroll = self.query_one(VerticalScroll)
        scroll.scroll_end(animate=False) if bottom else scroll.scroll_home(animate=False)


class AskScreen(ModalScreen[str | None]):
    """Asks for one line of text; None when cancelled.

    Args:
        question: what is asked, plain text.
        value: what the line begins with.
        placeholder: what an empty line shows.
        check: returns what is wrong with an answer, empty where nothing is; called in a thread. The line then stays
            to be fixed.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "cancel", id="ask.leave"),
    ]

    DEFAULT_CSS = """
    AskScreen #ask-wrong { color: $error; text-style: bold; display: none; }
    AskScreen .-wrong #ask-wrong { display: block; }
    """

    def __init__(
        self, question: str, value: str = "", placeholder: str = "", *, check: Callable[[str], str] | None = None
    ) -> None:
        super().__init__()
        self._question = sanitise(question)
        self._value = value
        self._placeholder = placeholder
        self._check = check

    def compose(self) -> ComposeResult:
        """Lay out the question and an input line."""
        with Vertical(id="confirm"):
            yield Static(self._question, markup=False)
            answer = Input(self._value, placeholder=self._placeholder, compact=True)
            answer.cursor_blink = False
            yield answer
            yield Static("", id="ask-wrong", markup=False)

    async def on_input_submitted(self, event: Input.Submitted) -> None:
        """Return the line, unless something is wrong with it."""
        wrong = await asyncio.to_thread(self._check, event.value) if self._check else ""
        if wrong:
            self._say_wrong(f"! {one_line(wrong)}")
        else:
            self.dismiss(event.value)

    def on_input_changed(self) -> None:
        """Hide the error while the line is being fixed."""
        self._say_wrong("")

    def _say_wrong(self, text: str) -> None:
        self.query_one("#confirm").set_class(bool(text), "-wrong")
        self.query_one("#ask-wrong", Static).update(text)

    def action_leave(self) -> None:
        """Cancel."""
        self.dismiss(None)
