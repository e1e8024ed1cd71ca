"""A chart's legend: mark, label and value of each curve, on one row or two, in whatever room there is.

Where it does not fit, values lose digits first, and only then labels are cut, never so far that two look the same;
at last the curves that are left are counted.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from ...readers.series import Series
from ...units import number
from .canvas import ASCII_MARKS, CURVES, MARKS
from .cells import cut_middle
from .chart_line import Line, Part, fitted, to_cells
from .chart_picture import SIGNS, Picture

_DIGITS = {4: 8, 3: 6, 2: 5}
"""Significant digits and the cells that such a value mostly needs, kept free so that the rest stays put."""
_MOST, _FEWEST = 4, 2
_LEAST_LABEL = 4
_MORE = 3  # cells of "+3"


class Entry(Struct, frozen=True):
    """One curve, or the reference line, in the legend."""

    sign: str
    label: str
    values: dict[int, str]
    """By significant digits."""
    owner: int


class Item(Struct, frozen=True):
    """An entry as it is written."""

    sign: str
    label: list[str]
    value: str
    owner: int

    @property
    def width(self) -> int:
        """Cells it takes."""
        return len(self.sign) + len(self.label) + bool(self.label) + len(self.value)

    def write(self, line: Line, column: int) -> int:
        """Write it from a column on; return the column after it."""
        column = line.put(column, self.sign, self.owner)
        column = line.put_cells(column, self.label, Part.TEXT) + bool(self.label)
        return line.put(column, self.value, self.owner)


Rows = list[list[Item]]


def entries_of(picture: Picture) -> list[Entry]:
    """Return the legend's entries; a single curve has no mark, and no label where the title says it."""
    several = len(picture.curves) > 1
    entries: list[Entry] = []
    largest = picture.largest
    for index, curve in enumerate(picture.curves):
        owner = index % CURVES + 1
        sign = (ASCII_MARKS if picture.ascii_only else MARKS)[owner - 1] + " " if several else ""
        label = curve.label if several or curve.label != picture.title else ""
        values = _in_digits(picture, _value_at(picture, curve.series), largest)
        entries.append(Entry(sign, label, values, owner))
    if picture.reference is not None:
        sign = SIGNS["ascii" if picture.ascii_only else "up"][8] * 2 + " "
        label, value = picture.reference
        entries.append(Entry(sign, label, _in_digits(picture, value, largest), Part.REFERENCE))
    return entries


def in_full(entries: Sequence[Entry], width: int, most: int) -> Rows | None:
    """Return a legend on as few rows as will do, nothing shortened; None where that is more than ``most``."""
    return _wrapped(_items(entries, [to_cells(entry.label) for entry in entries], _MOST, _DIGITS[_MOST]), width, most)


def squeezed(entries: Sequence[Entry], width: int, most: int, *, ascii_only: bool) -> Rows:
    """Fit on at most so many rows: with fewer digits, else shorter labels, else without the last curves (``+2``)."""
    for digits, kept in [*_DIGITS.items(), (_FEWEST, 0)]:
        if rows := _wrapped(_items(entries, [to_cells(entry.label) for entry in entries], digits, kept), width, most):
            return rows
    labels = [entry.label for entry in entries]
    longest = [len(to_cells(label)) for label in labels]
    fixed = sum(len(entry.sign) + len(entry.values[_FEWEST]) for entry in entries)
    for cells in range(min(max(longest, default=0) - 1, width), _LEAST_LABEL - 1, -1):
        if fixed + sum(min(cells, length) for length in longest) > width * most:
            continue
        short = shortened(labels, cells, ascii_only=ascii_only)
        if short and (rows := _wrapped(_items(entries, short, _FEWEST, 0), width, most)):
            return rows
    return _the_first(entries, width, most, ascii_only=ascii_only)


def shortened(labels: Sequence[str], cells: int, *, ascii_only: bool) -> list[list[str]] | None:
    """Return the labels in so many cells each: cut in the middle, or their ends, where their heads are alike.

    None: not told apart.
    """
    heads = [fitted(label, cells, ascii_only=ascii_only) for label in labels]
    if _told_apart(labels, heads):
        return heads
    middles = [to_cells(cut_middle(label, cells, ellipsis="~" if ascii_only else "…")) for label in labels]
    if _told_apart(labels, middles):
        return middles
    alike = next((i for i, signs in enumerate(zip(*labels, strict=False)) if len(set(signs)) > 1), 0)
    start = min(alike, max(map(len, labels)) - cells + 1)
    tails = [("~" if ascii_only else "…") + label[start:] for label in labels]
    cut = [fitted(tail, cells, ascii_only=ascii_only) for tail in tails]
    return cut if start > 1 and _told_apart(labels, cut) else None


def write(rows: Rows, lines: Sequence[Line], column: int) -> int:
    """Write them into as many lines, from a column on; return the column after the last."""
    stop = column
    for row, line in zip(rows, lines, strict=True):
        stop = column
        for index, item in enumerate(row):
            stop = item.write(line, stop + (index > 0))
    return stop


def _told_apart(labels: Sequence[str], cut: Iterable[list[str]]) -> bool:
    return len({"".join(cells) for cells in cut}) == len(set(labels))


def _items(entries: Sequence[Entry], labels: Sequence[list[str]], digits: int, kept: int) -> list[Item]:
    """Return the items, each value in at least ``kept`` cells."""
    return [
        Item(entry.sign, label, entry.values[digits].ljust(kept), entry.owner)
        for entry, label in zip(entries, labels, strict=True)
    ]


def _wrapped(items: Iterable[Item], width: int, most: int) -> Rows | None:
    rows: Rows = [[]]
    for item in items:
        if rows[-1] and _width([*rows[-1], item]) > width:
            rows.append([])
        rows[-1].append(item)
    return None if len(rows) > most or any(_width(row) > width for row in rows) else rows


def _width(row: Sequence[Item]) -> int:
    return sum(item.width for item in row) + len(row) - 1


def _the_first(entries: Sequence[Entry], width: int, most: int, *, ascii_only: bool) -> Rows:
    """Return as many as there is room for, with the labels told apart, and how many there are beyond them."""
    labels = [entry.label for entry in entries]
    cut: list[list[str]] = next(
        (short for cells in range(8, 17) if (short := shortened(labels, cells, ascii_only=ascii_only))),
        [fitted(label, 8, ascii_only=ascii_only) for label in labels],
    )
    items = _items(entries, cut, _FEWEST, 0)
    for count in range(len(items) - 1, 0, -1):
        more = Item(f"+{len(items) - count}".ljust(_MORE), [], "", Part.TEXT)
        if rows := _wrapped([*items[:count], more], width, most):
            return rows
    for item in items[:1]:
        room = width - len(item.sign) - len(item.value) - 1
        only = Item(item.sign, item.label[:room] if room >= _LEAST_LABEL else [], item.value, item.owner)
        return [[only]] if only.width <= width else []
    return []


def _in_digits(picture: Picture, value: float | str, largest: float) -> dict[int, str]:
    """Return a value by significant digits; words are the same in all."""
    if isinstance(value, str):
        return dict.fromkeys(_DIGITS, value)
    return {digits: number(value, picture.unit, beside=largest, digits=digits) for digits in _DIGITS}


def _value_at(picture: Picture, series: Series) -> float | str:
    """Return the newest value, or the one at the cursor: a dash where the curve has none near it, nan in a gap."""
    shown = series.smoothed(picture.weight)
    if picture.cursor is None or picture.window is None:
        return "-" if (last := shown.last) is None else last
    reach = (picture.window[1] - picture.window[0]) / 100
    near = shown.nearest(picture.cursor)
    if near is None or abs(near[0] - picture.cursor) > reach:
        return "nan" if any(series.gap_columns(picture.cursor - reach, picture.cursor + reach, 1)) else "-"
    return near[1]
