"""One row of a chart as cells and what each cell is, so that rows can be compared and only changed cells sent."""

import unicodedata
from collections.abc import Iterable
from enum import IntEnum

from rich.cells import cell_len

from .canvas import BAND, CURVES, REFERENCE

_APART = 10  # unchanged cells between two changed ones that are cheaper to skip than to send again


class Part(IntEnum):
    """The part that a cell belongs to; 1 to 6 are curves."""

    AXIS = 0
    BAND = BAND
    REFERENCE = REFERENCE
    GAP = CURVES + 3
    CURSOR = CURVES + 4
    TITLE = CURVES + 5
    FOCUSED = CURVES + 6
    TEXT = CURVES + 7


COMPONENTS = {
    **{index: f"chart--curve-{index}" for index in range(1, CURVES + 1)},
    **{part: f"chart--{part.name.lower()}" for part in Part},
}
"""The component class that gives a cell its style."""


class Line:
    """A row of so many cells. A wide character fills its cell and leaves the next one an empty string."""

    __slots__ = ("cells", "parts")

    def __init__(self, width: int) -> None:
        self.cells = [" "] * width
        self.parts = bytearray(width)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Line) and self.cells == other.cells and self.parts == other.parts

    __hash__ = None  # type: ignore[assignment]

    def put(self, column: int, text: str, part: int) -> int:
        """Write text from a column on, cut at the row's end; return the column after it."""
        return self.put_cells(column, to_cells(text), part)

    def put_cells(self, column: int, cells: list[str], part: int) -> int:
        """Write cells; those that lie outside, and half of a wide character at the end, are left out."""
        room = len(self.cells) - column
        if column < 0 or room <= 0:
            return column
        if len(cells) > room:
            cells = cells[:room] if cells[room] else [*cells[: room - 1], " "]
        self.cells[column : column + len(cells)] = cells
        self.parts[column : column + len(cells)] = bytes([part]) * len(cells)
        return column + len(cells)

    def runs(self) -> Iterable[tuple[str, int]]:
        """Yield (text, part) of neighbouring cells of one part; blanks join the run before them, which saves bytes."""
        start, current = 0, -1
        for index, (cell, part) in enumerate(zip(self.cells, self.parts, strict=True)):
            if part == current or (cell == " " and current not in (-1, Part.FOCUSED) and part == Part.AXIS):
                continue
            if index > start:
                yield "".join(self.cells[start:index]), current
            start, current = index, part
        if self.cells:
            yield "".join(self.cells[start:]), current

    def changes(self, other: "Line") -> list[tuple[int, int]]:
        """Return (first, stop) of the stretches of cells that differ from another row of the same width."""
        if self == other:
            return []
        if "" in self.cells or "" in other.cells:  # no stretch may begin or end inside a wide character
            return [(0, len(self.cells))]
        stretches: list[tuple[int, int]] = []
        mine, theirs = zip(self.cells, self.parts, strict=True), zip(other.cells, other.parts, strict=True)
        for index, (new, old) in enumerate(zip(mine, theirs, strict=True)):
            if new == old:
                continue
            if stretches and index - stretches[-1][1] < _APART:
                stretches[-1] = (stretches[-1][0], index + 1)
            else:
                stretches.append((index, index + 1))
        return stretches


def to_cells(text: str) -> list[str]:
    """Return one entry per terminal cell; marks without a cell are left out, what joins into one sign is ``?``."""
    if text.isascii():
        return list(text)
    text = unicodedata.normalize("NFC", text)
    cells: list[str] = []
    for sign in text:
        cells += {0: [], 2: [sign, ""]}.get(cell_len(sign), [sign])
    joined = "".join(cells)
    return cells if cell_len(joined) == len(cells) else list(joined.encode("ascii", "replace").decode())


def fitted(text: str, width: int, *, ascii_only: bool = False) -> list[str]:
    """Return the text's cells, at most so many, with an ellipsis where it was cut."""
    cells = to_cells(text)
    if len(cells) <= width:
        return cells
    kept = cells[: max(0, width - 1)]
    if kept and not cells[len(kept)]:
        kept[-1] = " "
    return [*kept, "~" if ascii_only else "…"][: max(0, width)]
