"""Dialog that chooses the columns of the list of runs."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen

from ...readers.run_columns import COLUMNS
from ..widgets.row_list import Pieces, RowList

_HEADING = "Columns (space: on / off, enter: done, d: by width)"


class ColumnsScreen(ModalScreen[list[str] | None]):
    """Returns the columns chosen; an empty list: as many as have room; None when cancelled.

    Args:
        chosen: names of the columns that are shown.
    """

    WIDGETS_WITH_KEYS = ("RowList",)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "switch", "show / hide column", id="columns.toggle"),
        Binding("enter", "done", "done", id="columns.done"),
        Binding("d", "default", "columns by width", id="columns.default"),
        Binding("escape,q", "leave", "cancel", id="columns.leave"),
    ]
    DEFAULT_CSS = """
    ColumnsScreen > Vertical {
        width: 60; max-width: 100%; height: auto; max-height: 90%; border: round $primary; background: $surface;
        padding: 0 1;
    }
    ColumnsScreen RowList { height: 1fr; }
    """

    def __init__(self, chosen: Sequence[str]) -> None:
        super().__init__()
        self._chosen = {"run", *chosen}

    def compose(self) -> ComposeResult:
        """Lay out the list."""
        with Vertical() as frame:
            frame.styles.height = len(COLUMNS) + 3
            yield RowList(self._draw, id="columns")

    def on_mount(self) -> None:
        """Put the cursor on the first column that can be hidden."""
        rows = self.query_one(RowList)
        rows.show_rows(len(COLUMNS), 1, lambda _: _HEADING, keep=False)
        rows.focus()

    def action_switch(self) -> None:
        """Show or hide the column under the cursor; the runs' names stay."""
        rows = self.query_one(RowList)
        name = list(COLUMNS)[rows.cursor]
        if name != "run":
            self._chosen ^= {name}
            rows.repaint()

    def action_done(self) -> None:
        """Return the columns, in their order."""
        self.dismiss([name for name in COLUMNS if name in self._chosen])

    def action_default(self) -> None:
        """Return no choice: the width decides."""
        self.dismiss([])

    def action_leave(self) -> None:
        """Cancel."""
        self.dismiss(None)

    def _draw(self, index: int, width: int) -> Pieces:
        column = list(COLUMNS.values())[index]
        mark = "■" if column.name in self._chosen else "·"
        return [(f"{mark} {column.name:<10} ", "plain"), (column.about, "dim")]
