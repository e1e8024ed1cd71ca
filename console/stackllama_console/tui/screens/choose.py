"""Dialog that chooses one of a few values from a list."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen

from ...sanitise import one_line
from ..widgets.row_list import Pieces, RowList


class ChooseScreen(ModalScreen[str | None]):
    """Returns the chosen value, None when cancelled.

    Args:
        question: what is chosen, plain text.
        choices: (value, what is said of it); at least one.
        chosen: the value that the cursor begins on.
    """

    WIDGETS_WITH_KEYS = ("RowList",)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,space", "choose", "choose", id="choose.choose"),
        Binding("escape,q", "leave", "cancel", id="choose.leave"),
    ]
    DEFAULT_CSS = """
    ChooseScreen > Vertical {
        width: 60; max-width: 100%; height: auto; max-height: 90%; border: round $primary; background: $surface;
        padding: 0 1;
    }
    ChooseScreen RowList { height: 1fr; }
    """

    def __init__(self, question: str, choices: Sequence[tuple[str, str]], chosen: str | None = None) -> None:
        super().__init__()
        self._question = one_line(question)
        self._choices = list(choices)
        values = [value for value, _ in self._choices]
        self._start = values.index(chosen) if chosen in values else 0

    def compose(self) -> ComposeResult:
        """Lay out the list, the question as its heading."""
        with Vertical() as frame:
            frame.styles.height = min(len(self._choices), 16) + 3
            yield RowList(self._draw, id="choices")

    def on_mount(self) -> None:
        """Put the cursor on the current value."""
        rows = self.query_one(RowList)
        rows.show_rows(len(self._choices), self._start, lambda _: self._question, keep=False)
        rows.focus()

    def action_choose(self) -> None:
        """Return the value under the cursor."""
        self.dismiss(self._choices[self.query_one(RowList).cursor][0])

    def action_leave(self) -> None:
        """Return none of them."""
        self.dismiss(None)

    def _draw(self, index: int, width: int) -> Pieces:
        value, said = self._choices[index]
        return [(f"{one_line(value):<16} ", "plain"), (one_line(said), "dim")]
