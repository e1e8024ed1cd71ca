"""Which part of which line each row of a log shows: lines cut at the right edge, or wrapped over several rows."""

from typing import NamedTuple, Protocol

from rich.cells import cell_len, get_character_cell_size

from ...readers.logs import LogLine

Span = tuple[int, int]
"""Cells of a line, from the first on and up to the second."""


class Lines(Protocol):
    """Lines by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> LogLine: ...


class Spot(NamedTuple):
    """A row: the number of a line from 0 on, and which of the rows that it is wrapped over."""

    line: int
    part: int = 0


class Layout:
    """Rows of some width.

    Attributes:
        width: cells of a row.
        wraps: whether lines are wrapped.
        left: cells that unwrapped lines are moved to the left.
    """

    def __init__(self) -> None:
        self.width = 1
        self.wraps = False
        self.left = 0

    def parts(self, text: str) -> list[Span]:
        """Return the cells of each row of a line."""
        if not self.wraps:
            return [(self.left, self.left + self.width)]
        if text.isascii():
            return [(start, start + self.width) for start in range(0, max(1, len(text)), self.width)]
        return _cut(text, self.width)

    def rows(self, lines: Lines, top: Spot, height: int) -> list[tuple[LogLine, Span]]:
        """Return what is to be seen from a row on."""
        rows: list[tuple[LogLine, Span]] = []
        for index in range(top.line, len(lines)):
            parts = self.parts(lines[index].text)
            rows += [(lines[index], part) for part in (parts[top.part :] if index == top.line else parts)]
            if len(rows) >= height:
                break
        return rows[:height]

    def moved(self, lines: Lines, spot: Spot, rows: int) -> Spot:
        """Return the row so many rows further down, or up; as far as there are any."""
        index, part = spot
        if not lines:
            return Spot(0)
        index = min(index, len(lines) - 1)
        if not self.wraps:
            return Spot(max(0, min(index + rows, len(lines) - 1)))
        part += rows
        while part < 0 and index > 0:
            index -= 1
            part += len(self.parts(lines[index].text))
        while part >= (count := len(self.parts(lines[index].text))):
            if index + 1 == len(lines):
                return Spot(index, count - 1)
            part, index = part - count, index + 1
        return Spot(index, max(0, part))

    def last_top(self, lines: Lines, height: int) -> Spot:
        """Return the top row when the newest line is in the last one."""
        if not lines:
            return Spot(0)
        last = Spot(len(lines) - 1, len(self.parts(lines[-1].text)) - 1)
        return self.moved(lines, last, 1 - height)


def _cut(text: str, width: int) -> list[Span]:
    """Cut a text into rows; a wide character goes as a whole."""
    starts, column = [0], 0
    for character in text:
        size = get_character_cell_size(character)
        if column + size > starts[-1] + width and size:
            starts.append(column)
        column += size
    column = max(column, cell_len(text))
    return [(start, stop) for start, stop in zip(starts, [*starts[1:], max(column, starts[-1] + width)], strict=True)]
