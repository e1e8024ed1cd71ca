"""A question before something that cannot be undone, or that asks for a word."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from ...sanitise import sanitise


class ConfirmScreen(ModalScreen[bool]):
    """Yes or no; no is the answer of every key that is not `y`.

    Args:
        question: what is asked, plain text; may have several lines.
        action: what `y` does, one or two words.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes", id="confirm.yes"),
        Binding("n,escape,q", "answer(False)", "no", id="confirm.no"),
    ]

    def __init__(self, question: str, action: str) -> None:
        super().__init__()
        self._question = sanitise(question)
        self._action = action

    def compose(self) -> ComposeResult:
        """The question and its two answers."""
        with Vertical(id="confirm"):
            yield Static(self._question, markup=False)
            yield Static(f"y  {self._action}     n  leave it", markup=False, classes="answers")

    def action_answer(self, yes: bool) -> None:
        """Give the answer."""
        self.dismiss(yes)


class AskScreen(ModalScreen[str | None]):
    """One line of text; None when left with escape."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "leave it", id="ask.leave"),
    ]

    def __init__(self, question: str, value: str = "", placeholder: str = "") -> None:
        super().__init__()
        self._question = sanitise(question)
        self._value = value
        self._placeholder = placeholder

    def compose(self) -> ComposeResult:
        """The question and a line to answer on."""
        with Vertical(id="confirm"):
            yield Static(self._question, markup=False)
            answer = Input(self._value, placeholder=self._placeholder, compact=True)
            answer.cursor_blink = False
            yield answer

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """The line is the answer."""
        self.dismiss(event.value)

    def action_leave(self) -> None:
        """No answer."""
        self.dismiss(None)
