"""Textual's table with rows that are put together from their texts at once.

A `DataTable` renders each cell through Rich's general machinery, and all rows in sight again when the cursor moves: a
tenth of a second for a screenful. Here cells are one line of `Text` each, and a row is drawn again when it has changed.
"""

from collections.abc import Iterable
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.cache import LRUCache
from textual.strip import Strip
from textual.widgets import DataTable
from textual.widgets.data_table import RowKey


class FastTable(DataTable[Text]):
    """A table of texts with rows of one line, columns of fixed width and a row as its cursor."""

    def __init__(self, **options: Any) -> None:
        self._strips: LRUCache[tuple[Any, ...], Strip] = LRUCache(2000)
        super().__init__(**options)

    def _update_dimensions(self, new_rows: Iterable[RowKey]) -> None:
        """Measure cells only where they make a column's width."""
        measured = any(column.auto_width for column in self.columns.values())
        super()._update_dimensions(new_rows if measured else ())

    def _render_line(self, y: int, x1: int, x2: int, base_style: Style) -> Strip:
        width = self.size.width
        index = y - (self.header_height if self.show_header else 0)
        if index >= self.row_count:
            return Strip.blank(width, base_style)
        index = max(-1, index)
        is_cursor = index == self.cursor_coordinate.row and index >= 0
        is_hovered = self._show_hover_cursor and index == self.hover_coordinate.row and index >= 0
        row = self._row_locations.get_key(index) if index >= 0 else None
        key = (row, index, x1, x2, width, is_cursor, is_hovered, base_style, self.show_cursor)
        key = (*key, self._update_count, self._pseudo_class_state)
        if (strip := self._strips.get(key)) is None:
            segments = self._segments(index, base_style, is_cursor, is_hovered)
            strip = Strip(segments).crop(x1, x2).adjust_cell_length(width, base_style).simplify()
            self._strips[key] = strip
        return strip

    def _segments(self, index: int, base_style: Style, is_cursor: bool, is_hovered: bool) -> list[Segment]:
        """Return a row's pieces; -1: the heading."""
        pre, post = self._get_styles_to_render_cell(
            index < 0,
            False,
            False,
            is_hovered,
            is_cursor,
            self.show_cursor,
            self._show_hover_cursor,
            self.cursor_foreground_priority == "css",
            self.cursor_background_priority == "css",
        )
        row_style = self._get_row_style(index, base_style) + pre
        where = Style.from_meta({"row": index, "column": 0})
        blank = row_style + post + where
        cells = [column.label for column in self.ordered_columns] if index < 0 else self.get_row_at(index)
        padding, segments, used = " " * self.cell_padding, list[Segment](), 0
        for column, cell in zip(self.ordered_columns, cells, strict=True):
            inner = column.get_render_width(self) - 2 * self.cell_padding
            segments += [Segment(padding, blank), *self._pieces(cell, inner, row_style, post + where)]
            segments.append(Segment(padding, blank))
            used += inner + 2 * self.cell_padding
        rest = max(0, self.size.width - used)
        outside = Style.from_meta({"row": index, "column": 0, "out_of_bounds": True})
        segments.append(Segment(" " * rest, row_style + outside))
        return segments

    def _pieces(self, cell: Text | str, width: int, style: Style, post: Style) -> list[Segment]:
        """Return a cell's text within so many columns."""
        text = cell if isinstance(cell, Text) else Text(cell)
        if text.spans:
            text = text.copy()
            text.truncate(width, overflow="crop")
            console = self.app.console  # pyright: ignore[reportUnknownMemberType]
            pieces = [
                Segment(segment.text, style + (segment.style or Style.null()) + post)
                for segment in text.render(console, end="")
            ]
        else:
            plain = set_cell_size(text.plain, width) if cell_len(text.plain) > width else text.plain
            own = Style.parse(text.style) if isinstance(text.style, str) else text.style
            pieces = [Segment(plain, style + own + post)] if plain else []
        gap = width - sum(piece.cell_length for piece in pieces)
        filling = [Segment(" " * gap, style + post)] if gap > 0 else []
        return [*filling, *pieces] if text.justify == "right" else [*pieces, *filling]

    def _clear_caches(self) -> None:
        super()._clear_caches()
        self._strips.clear()

    def notify_style_update(self) -> None:
        """Draw in other colours."""
        self._strips.clear()
        super().notify_style_update()
