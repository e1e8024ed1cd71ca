"""One row of a log as a strip: a letter for its level, the mark of the current match, and a part of a line."""

from collections.abc import Callable
from typing import NamedTuple

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from ...readers.log_levels import LETTER, Level
from .log_layout import Span

GUTTER = 2
PARTS = (*LETTER, "match", "current")
"""What has a style of its own."""


class Row(NamedTuple):
    """What one row shows: the ``cells`` of a line's text, and which of its characters match the search."""

    level: Level
    text: str
    cells: Span
    matches: tuple[Span, ...] = ()
    is_current: bool = False
    continues: bool = False
    """Whether the line begins in a row above."""

    @property
    def gutter(self) -> str:
        """What stands before the text."""
        return "  " if self.continues else LETTER[self.level] + (">" if self.is_current else " ")


BLANK = Row("other", "", (0, 0))


def strip_of(row: Row, width: int, style_of: Callable[[str], Style]) -> Strip:
    """Render a row; ``style_of`` returns the style of each of `PARTS`."""
    style = style_of(row.level)
    gutter = Strip([Segment(row.gutter, style)], GUTTER)
    first, stop = row.cells
    body = Strip(_pieces(row, style, style_of)).crop(first, max(first, min(stop, first + width - GUTTER)))
    return Strip.join([gutter, body]).adjust_cell_length(width, style)


def _pieces(row: Row, style: Style, style_of: Callable[[str], Style]) -> list[Segment]:
    text = row.text
    if not row.matches:
        return [Segment(text, style)]
    marked = style_of("current" if row.is_current else "match")
    pieces: list[Segment] = []
    end = 0
    for start, stop in row.matches:
        pieces += [Segment(text[end:start], style), Segment(text[start:stop], marked)]
        end = stop
    return [piece for piece in (*pieces, Segment(text[end:], style)) if piece.text]
