"""Dots in terminal cells: braille (2 × 4 dots a cell) or plain characters (one dot a cell). No Textual here.

Each cell knows its owner, which decides its colour: a curve, the band behind curves, or a reference line. A curve's
dots push the band's out of their cell, so that the line is seen in front of it without any colour. Curves are told
apart without colour by marks set at intervals (braille) or by a character of their own (plain).

Braille patterns: U+2800 plus one bit a dot (The Unicode Standard, chapter 21.1).
"""

from collections.abc import Sequence

Span = tuple[int, int]
"""Topmost and bottommost dot row of a column of dots, inclusive."""

CURVES = 6
BAND = CURVES + 1
REFERENCE = CURVES + 2
MARKS = "●▲■◆○△"
ASCII_MARKS = "*o+x#@"
_ASCII_OF = [" ", *ASCII_MARKS, ".", "-"]
_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BRAILLE = [" ", *(chr(0x2800 + mask) for mask in range(1, 256))]
_SPARSE = (_BITS[0][0] | _BITS[0][2], _BITS[1][1] | _BITS[1][3])
_MASKS = [[[sum(bits[top : bottom + 1]) for bottom in range(4)] for top in range(4)] for bits in _BITS]
"""Dots of a cell by side, first and last dot row."""


class Canvas:
    """``width`` × ``height`` cells; columns of dots count from the left, rows of dots from the top."""

    def __init__(self, width: int, height: int, *, ascii_only: bool = False) -> None:
        self.width, self.height = width, height
        self.across, self.down = (1, 1) if ascii_only else (2, 4)
        """Dots a cell."""
        self.ascii_only = ascii_only
        self._masks = bytearray(width * height)
        self._owners = bytearray(width * height)
        self._marks: dict[int, str] = {}

    @property
    def columns(self) -> int:
        """Columns of dots."""
        return self.width * self.across

    @property
    def rows(self) -> int:
        """Rows of dots."""
        return self.height * self.down

    def fill(self, column: int, span: Span, owner: int) -> None:
        """Fill the dots of one column from the top to the bottom of the span; the band gets every second dot."""
        top, bottom = span
        masks, owners, width = self._masks, self._owners, self.width
        first, last = top // self.down, bottom // self.down
        table = None if self.ascii_only else _MASKS[column % 2]
        band = owner == BAND
        for row in range(first, last + 1):
            dots = 1
            if table is not None:
                dots = table[top - 4 * row if row == first else 0][bottom - 4 * row if row == last else 3]
                if band:
                    dots = dots & _SPARSE[column % 2] or dots
            index = row * width + column // self.across
            if owners[index] == BAND and not band:
                masks[index] = 0
            masks[index] |= dots
            owners[index] = owner

    def curve(self, spans: Sequence[Span | None], owner: int, breaks: Sequence[bool] = ()) -> list[Span | None]:
        """Draw a line through the columns' spans: neighbours are joined, and so are columns with none between.

        ``breaks`` says at which columns the line must not be carried across (empty: nowhere). Returns what was
        filled in each column.
        """
        filled: list[Span | None] = [None] * len(spans)
        before: tuple[int, Span] | None = None
        for column, span in enumerate(spans):
            if span is None:
                continue
            if before is not None and not any(breaks[before[0] + 1 : column]):
                span = self._join(before, (column, span), filled)
            filled[column] = span
            before = column, spans[column] or span
        for column, span in enumerate(filled):
            if span is not None:
                self.fill(column, span, owner)
        return filled

    def _join(self, before: tuple[int, Span], after: tuple[int, Span], filled: list[Span | None]) -> Span:
        """Fill the columns between two spans and return the second, lengthened until it touches what is before it."""
        (start, old), (stop, new) = before, after
        if stop - start > 1:
            here = (old[0] + old[1]) / 2
            slope = ((new[0] + new[1]) / 2 - here) / (stop - start)
            for column in range(start + 1, stop):
                level = round(here + slope * (column - start))
                old = _touching((level, level), old)
                filled[column] = old
                old = (level, level)
        return _touching(new, old)

    def mark(self, column: int, row: int, owner: int) -> None:
        """Put a curve's own sign into a cell (cell column and row)."""
        index = row * self.width + column
        self._marks[index] = ASCII_MARKS[owner - 1] if self.ascii_only else MARKS[owner - 1]
        self._owners[index] = owner

    def row(self, row: int) -> tuple[list[str], bytearray]:
        """Return characters and owners of a row of cells; empty cells are blanks with owner 0."""
        start, stop = row * self.width, (row + 1) * self.width
        owners = self._owners[start:stop]
        if self.ascii_only:
            cells = [_ASCII_OF[owner] for owner in owners]
        else:
            cells = [_BRAILLE[mask] for mask in self._masks[start:stop]]
        for index, sign in self._marks.items():
            if start <= index < stop:
                cells[index - start] = sign
        return cells, owners


def _touching(span: Span, before: Span) -> Span:
    """Return the span, lengthened so that no row of dots lies empty between it and the one before."""
    top, bottom = span
    if top > before[1] + 1:
        return before[1] + 1, bottom
    if bottom < before[0] - 1:
        return top, before[0] - 1
    return span
