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
from ..widgets.path_completer import complete


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
        path: the answer is a path, which tab completes.
        answers: the keys and what they do, below the line; of a path they are named anyway.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "cancel", id="ask.leave"),
        Binding("tab", "complete", "complete path", id="ask.complete"),
    ]

    DEFAULT_CSS = """
    AskScreen #ask-wrong { color: $error; text-style: bold; display: none; }
    AskScreen .-wrong #ask-wrong { display: block; }
    AskScreen #ask-names { max-height: 5; color: $text-muted; display: none; }
    AskScreen .-names #ask-names { display: block; }
    """

    def __init__(
        self,
        question: str,
        value: str = "",
        placeholder: str = "",
        *,
        check: Callable[[str], str] | None = None,
        path: bool = False,
        answers: str = "",
    ) -> None:
        super().__init__()
        self._question = sanitise(question)
        self._value = value
        self._placeholder = placeholder
        self._check = check
        self._path = path
        self._answers = "enter  open     tab  complete     esc  cancel" if path else answers
        self._completed = ""  # the text whose candidates are shown

    def compose(self) -> ComposeResult:
        """Lay out the question and an input line."""
        with Vertical(id="confirm"):
            yield Static(self._question, markup=False)
            answer = Input(self._value, placeholder=self._placeholder, compact=True)
            answer.cursor_blink = False
            yield answer
            yield Static("", id="ask-wrong", markup=False)
            yield Static("", id="ask-names", markup=False)
            if self._answers:
                yield Static(self._answers, markup=False, classes="answers")

    async def on_input_submitted(self, event: Input.Submitted) -> None:
        """Return the line, unless something is wrong with it."""
        wrong = await asyncio.to_thread(self._check, event.value) if self._check else ""
        if wrong:
            self._say_wrong(f"! {one_line(wrong)}")
        else:
            self.dismiss(event.value)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Hide the error while the line is being fixed, and candidates of another text."""
        self._say_wrong("")
        if event.value != self._completed:
            self._show_names("")

    def action_complete(self) -> None:
        """Complete the path."""
        self.run_worker(complete(self.query_one(Input), self._show_names), group="complete", exclusive=True)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer completion where the answer is a path."""
        return self._path if action == "complete" else True

    def _show_names(self, names: str) -> None:
        self._completed = self.query_one(Input).value
        self.query_one("#confirm").set_class(bool(names), "-names")
        self.query_one("#ask-names", Static).update(names)

    def _say_wrong(self, text: str) -> None:
        self.query_one("#confirm").set_class(bool(text), "-wrong")
        self.query_one("#ask-wrong", Static).update(text)

    def action_leave(self) -> None:
        """Cancel."""
        self.dismiss(None)
