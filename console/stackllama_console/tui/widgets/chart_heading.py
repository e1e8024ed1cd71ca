"""The rows above a chart's plot: title, how the data is shown (the flags), legend.

A flag says that what is drawn is not the plain data, so none is ever left out: where there is no room they are
shortened, then the title is.
"""

from collections.abc import Sequence

from msgspec import Struct

from .chart_legend import Entry, entries_of, in_full, squeezed, write
from .chart_line import Line, Part, fitted
from .chart_picture import SIGNS, Picture
from .x_scale import x_label, x_short

_LEGEND_FROM = 8
"""Rows of the chart from which on the legend may have a row of its own."""
_TWO_FROM = 9
_LEAST_TITLE = 4
_HEAD = 8
"""Cells of a title that tell what it is."""
_LEAST_VALUE = 10
_WITH_MARGIN = 12


class Flag(Struct, frozen=True):
    """Something to be said about how the data is shown, at length and as short as it gets."""

    long: str
    short: str


def heading(picture: Picture, width: int, height: int, *, below_zero: bool) -> list[Line]:
    """Return one row, or more with a legend beneath it: with several curves, or where one row cannot hold all.

    ``below_zero``: a log axis shows values that are not positive at its bottom.
    """
    entries = entries_of(picture)
    texts = texts_of(flags_of(picture, below_zero), picture)
    most = 0 if not entries else 2 if height >= _TWO_FROM else 1 if height >= _LEGEND_FROM else 0
    first = Line(width)
    if not most or len(picture.curves) < 2:
        if _on_one_row(picture, first, entries, texts):
            return [first]
        if not most:
            _squeeze(picture, first, entries, texts[-1])
            return [first]
    _title_and_flags(picture, first, texts)
    indent = 2 if width >= _WITH_MARGIN else 0
    rows = squeezed(entries, width - indent, most, ascii_only=picture.ascii_only)
    legend = [Line(width) for _ in rows]
    write(rows, legend, indent)
    return [first, *legend]


def flags_of(picture: Picture, below_zero: bool) -> list[Flag]:
    """Return the flags in the order in which they are shown."""
    flags: list[Flag] = []
    if picture.cursor is not None:
        flags.append(Flag(f"at {x_label(picture.cursor, picture.x)}", f"@{x_short(picture.cursor, picture.x)}"))
    gaps = sum(len(curve.series.gaps) for curve in picture.curves)
    if gaps:
        flags.append(Flag(f"! {gaps} not finite", f"!{gaps}"))
    if picture.weight:
        flags.append(Flag(f"smooth {picture.weight:g}", f"sm {picture.weight:g}"))
    if picture.log:
        least = "log<=0" if picture.ascii_only else "log≤0"
        flags.append(Flag("log, 0 and less at the bottom", least) if below_zero else Flag("log", "log"))
    if picture.x != "step":
        flags.append(Flag(f"by {picture.x}", picture.x))
    if picture.pinned:
        flags.append(Flag("pinned", "*"))
    if not picture.whole:
        flags.append(Flag("zoom", "zoom") if picture.following else Flag("zoom, held", "held"))
    return flags


def texts_of(flags: Sequence[Flag], picture: Picture) -> list[str]:
    """Return the flags as one text, from the longest to the shortest: what saves most is shortened first."""
    between = f" {SIGNS['ascii' if picture.ascii_only else 'up'][7]} "
    words = [flag.long for flag in flags]
    texts = [between.join(words)]
    for index in sorted(range(len(flags)), key=lambda index: len(flags[index].short) - len(flags[index].long)):
        words[index] = flags[index].short
        texts.append(between.join(words))
    return [*texts, " ".join(words)]


def _lead(picture: Picture, line: Line) -> int:
    """Put the sign of focus, or blanks; return the title's column."""
    sign = SIGNS["ascii" if picture.ascii_only else "up"][6] if picture.focused else " "
    return line.put(0, f"{sign} ", _title_part(picture)) if len(line.cells) >= _WITH_MARGIN else 0


def _title_part(picture: Picture) -> Part:
    return Part.FOCUSED if picture.focused else Part.TITLE


def _on_one_row(picture: Picture, line: Line, entries: Sequence[Entry], texts: Sequence[str]) -> bool:
    """Put title, legend and flags side by side, the flags no shorter than needed; False, and nothing, without room."""
    width = len(line.cells)
    title = fitted(picture.title, width, ascii_only=picture.ascii_only)
    start = (2 if width >= _WITH_MARGIN else 0) + len(title) + 2
    for text in texts:
        room = width - start - (len(text) + 2 if text else 0)
        rows = in_full(entries, room, 1)
        if rows is not None and room >= 0:
            line.put_cells(_lead(picture, line), title, _title_part(picture))
            write(rows, [line], start)
            line.put(width - len(text) - 1, text, Part.TEXT)
            return True
    return False


def _title_and_flags(picture: Picture, line: Line, texts: Sequence[str]) -> None:
    """Put the title whole beside the longest flags that leave room for it, else cut beside the shortest."""
    column, width = _lead(picture, line), len(line.cells)
    title = fitted(picture.title, width, ascii_only=picture.ascii_only)
    text = next((text for text in texts if column + len(title) + len(text) + 3 <= width), texts[-1])
    room = width - column - (len(text) + 2 if text else 0)
    title = fitted(picture.title, max(min(room, len(title)), _LEAST_TITLE), ascii_only=picture.ascii_only)
    column = line.put_cells(column, title, _title_part(picture))
    _put_flags(picture, line, text, column)


def _squeeze(picture: Picture, line: Line, entries: Sequence[Entry], text: str) -> None:
    """Put everything on one row: a title cut to its head, the shortest flags, and the legend in what is left."""
    column, width = _lead(picture, line), len(line.cells)
    taken = (len(text) + 2 if text else 0) + (_LEAST_VALUE if entries and width >= 16 else 0)
    most = max(_HEAD, width // 4) if len(entries) > 1 else width
    cells = max(_LEAST_TITLE, min(most, width - column - taken))
    column = line.put_cells(column, fitted(picture.title, cells, ascii_only=picture.ascii_only), _title_part(picture))
    room = width - column - 2 - (len(text) + 2 if text else 0)
    if room >= _LEAST_VALUE - 2 and entries:
        rows = squeezed(entries, room, 1, ascii_only=picture.ascii_only)
        column = write(rows, [line] * len(rows), column + 2)
    _put_flags(picture, line, text, column)


def _put_flags(picture: Picture, line: Line, text: str, column: int) -> None:
    """Put the flags at the right, at least a cell from what ends at a column."""
    cells = fitted(text, len(line.cells) - column - 1, ascii_only=picture.ascii_only)
    line.put_cells(max(column + 1, len(line.cells) - len(cells) - 1), cells, Part.TEXT)
