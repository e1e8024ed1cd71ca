"""Minimal terminal updates: the cells that differ from what is displayed, and nothing else.

Textual 8 sends a changed region from the left edge of its widget on, with all colours anew for each piece of text. Over
SSH that is four fifths of the bytes of a run's monitor. Here each row as it was last sent is kept, and

- of a row only the stretches that differ are written, all stretches of one colour together;
- of colours and attributes only what changes is said, and a blank takes whatever is being written with;
- rows that have moved up or down, as a log's, are moved by the terminal: a scrolling region (DECSTBM), in which lines
  are deleted or inserted (DL, IL), all of the VT102 (https://vt100.net/docs/vt102-ug/chapter5.html).

A full repaint (another screen, another size) is sent whole.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import zip_longest

from rich.cells import get_character_cell_size
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style
from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate
from textual.geometry import Size
from textual.strip import Strip

Look = tuple[str, str, str]
"""SGR parameters of attributes, foreground and background."""
_Row = tuple[list[str], list[Look]]

_PLAIN: Look = ("", "39", "49")
_APART = 4  # unchanged cells between two changes that cost less than moving the cursor over them
_ENDS = {"1": "22", "2": "22", "3": "23", "4": "24", "5": "25", "7": "27", "8": "28", "9": "29"}
"""What ends an attribute; bold and faint together."""
_UNSEEN = frozenset("1235")
"""Attributes that do not show on a blank."""
_LEAST_MOVED = 3  # rows that must be saved by moving others


class Frames:
    """The rows of one terminal as they were last sent."""

    def __init__(self) -> None:
        self._rows: dict[int, _Row | None] = {}
        self._size = Size(0, 0)
        self._looks: dict[tuple[Style, ColorSystem], Look] = {}

    def tightened(self, update: CompositorUpdate, size: Size) -> CompositorUpdate:
        """Return the same update, of which only what differs is sent when it is rendered."""
        return _Tightened(self, update, size) if isinstance(update, ChopsUpdate | LayoutUpdate) else update

    def forget(self) -> None:
        """Count nothing as displayed: another program has drawn on the terminal."""
        self._rows.clear()

    def render(self, update: ChopsUpdate | LayoutUpdate, size: Size, console: Console) -> str:
        """Return what to write; from then on it counts as displayed."""
        system = getattr(console, "_color_system", None) or ColorSystem.TRUECOLOR
        if size != self._size:
            self._size = size
            self._rows.clear()
        pen = _Pen()
        wanted: dict[int, _Row] = {}
        if isinstance(update, LayoutUpdate):
            pieces = ((y, 0, strips) for y, strips in enumerate(update.strips))
            for y in range(len(update.strips)):
                self._rows.pop(y, None)
        else:
            pieces = _pieces(update)
        for y, x, strips in pieces:
            self._lay(pen, y, x, strips, system, wanted)
        self._send(pen, wanted)
        return pen.finish()

    def _lay(
        self, pen: "_Pen", y: int, x: int, strips: Iterable[Strip], system: ColorSystem, wanted: dict[int, _Row]
    ) -> None:
        """Lay a piece over the row as it is known, or write it where the row is not known."""
        cells: list[str] = []
        looks: list[Look] = []
        single = True
        for strip in strips:
            for text, style, control in strip:
                if control:
                    continue
                single = single and _single(text)
                cells += text
                looks += _looks_of(text, self._look(style, system))
        known = self._rows.get(y)
        if known is not None and single:
            row_cells, row_looks = wanted.setdefault(y, (known[0].copy(), known[1].copy()))
            row_cells[x : x + len(cells)], row_looks[x : x + len(cells)] = cells, looks
            return
        if (row := wanted.pop(y, None)) is not None and known is not None:  # what was laid before it
            for first, stop in _changes(row, known):
                pen.write(y, first, row[0][first:stop], row[1][first:stop])
        # characters of two cells or none: sent as they are, and the row is not compared until it is whole
        whole = single and x == 0 and len(cells) >= self._size.width
        self._rows[y] = (cells, looks) if whole else None
        pen.write(y, x, cells, looks)

    def _send(self, pen: "_Pen", wanted: dict[int, _Row]) -> None:
        """Write the rows' stretches that differ, those of one colour together."""
        for first, stop in _blocks(wanted):
            self._move(pen, first, stop, wanted)
        stretches: list[tuple[Look, int, int, _Row]] = []
        for y, row in wanted.items():
            known = self._rows[y]
            assert known is not None
            for first, stop in _changes(row, known):
                cells, looks = row[0][first:stop], row[1][first:stop]
                stretches.append((looks[0], y, first, (cells, looks)))
            self._rows[y] = row
        stretches.sort(key=lambda stretch: stretch[:3])
        for _, y, first, (cells, looks) in stretches:
            pen.write(y, first, cells, looks)

    def _move(self, pen: "_Pen", first: int, stop: int, wanted: dict[int, _Row]) -> None:
        """Move the rows of a block up or down where most of them have only moved."""
        new = [wanted[y] for y in range(first, stop)]
        old = [row for y in range(first, stop) if (row := self._rows[y]) is not None]
        lines = _moved(new, old)
        if not lines:
            return
        pen.move(first, stop, lines)
        blank = [([" "] * self._size.width, [_PLAIN] * self._size.width) for _ in range(abs(lines))]
        shifted = old[lines:] + blank if lines > 0 else blank + old[:lines]
        self._rows.update(zip(range(first, stop), shifted, strict=True))

    def _look(self, style: Style | None, system: ColorSystem) -> Look:
        if style is None:
            return _PLAIN
        known = self._looks.get((style, system))
        if known is None:
            if len(self._looks) > 4096:
                self._looks.clear()
            attributes = Strip.render_ansi(style.without_color, system) if style.without_color else ""
            front = style.color and ";".join(style.color.downgrade(system).get_ansi_codes())
            back = style.bgcolor and ";".join(style.bgcolor.downgrade(system).get_ansi_codes(foreground=False))
            known = self._looks[style, system] = (attributes, front or _PLAIN[1], back or _PLAIN[2])
        return known


class _Tightened(CompositorUpdate):
    """An update that is compared when it is really sent: Textual drops some."""

    def __init__(self, frames: Frames, update: ChopsUpdate | LayoutUpdate, size: Size) -> None:
        self._frames = frames
        self._update = update
        self._size = size

    def render_segments(self, console: Console) -> str:
        """Render as Textual does, shorter."""
        return self._frames.render(self._update, self._size, console)


class _Pen:
    """Writes cells, and remembers how and where the terminal is writing."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._look = _PLAIN
        self._at = (-1, -1)

    def write(self, y: int, x: int, cells: list[str], looks: list[Look]) -> None:
        """Write some cells of a row."""
        if not cells:
            return
        here, column = self._at
        if here == y and 0 < x - column < 100:
            self._parts.append(f"\x1b[{x - column}C")
        elif self._at != (y, x):
            self._parts.append(f"\x1b[{y + 1};{x + 1}H")
        for cell, look in zip(cells, looks, strict=True):
            if look is not self._look and look != self._look and not (cell == " " and self._blank_is(look)):
                self._turn_to(look)
            self._parts.append(cell)
        # a character of two cells or none moves on by more or less, and at the edge the terminal waits
        self._at = (y, x + len(cells)) if all(map(_single, cells)) else (-1, -1)

    def move(self, first: int, stop: int, lines: int) -> None:
        """Move the rows from ``first`` to before ``stop`` up by so many lines, or down where that is negative."""
        self._parts.append(
            f"\x1b[{first + 1};{stop}r\x1b[{first + 1};1H\x1b[{abs(lines)}{'M' if lines > 0 else 'L'}\x1b[r"
        )
        self._at = (-1, -1)

    def _blank_is(self, look: Look) -> bool:
        """Return whether a blank looks the same as it would if it were written as the terminal is writing."""
        return look[2] == self._look[2] and not look[0] and _is_unseen(self._look[0])

    def _turn_to(self, look: Look) -> None:
        before, self._look = self._look, look
        colours = [part for part, old in zip(look[1:], before[1:], strict=True) if part != old]
        wanted = ";".join([*_turned(before[0], look[0]), *colours])
        if before[0] and look[0] != before[0]:  # perhaps it is shorter to end all and begin anew
            anew = ";".join(["0", *(part for part, plain in zip(look, _PLAIN, strict=True) if part != plain)])
            wanted = min(anew, wanted, key=len) if _can_turn(before[0]) else anew
        self._parts.append(f"\x1b[{wanted}m")

    def finish(self) -> str:
        """Return all of it, colours put back."""
        if self._look != _PLAIN:
            self._parts.append("\x1b[0m")
        return "".join(self._parts)


def _can_turn(attributes: str) -> bool:
    """Return whether each attribute can be ended by itself."""
    return all(part in _ENDS for part in attributes.split(";"))


def _turned(before: str, after: str) -> list[str]:
    """Return the parameters that turn some attributes into others."""
    if before == after:
        return []
    old, new = ([part for part in text.split(";") if part] for text in (before, after))
    ends = dict.fromkeys(_ENDS.get(part, "0") for part in old if part not in new)
    return [*ends, *(part for part in new if part not in old or _ENDS.get(part) in ends)]


@lru_cache(maxsize=64)
def _is_unseen(attributes: str) -> bool:
    return not attributes or _UNSEEN.issuperset(attributes.split(";"))


def _looks_of(text: str, look: Look) -> list[Look]:
    """Return the look of each cell; blanks on one background look the same, whatever would be written on them."""
    blank = ("", _PLAIN[1], look[2])
    if look == blank or " " not in text or not _is_unseen(look[0]):
        return [look] * len(text)
    return [blank if cell == " " else look for cell in text]


def _blocks(rows: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, stop) of the rows that lie next to each other."""
    first = last = -2
    for y in sorted(rows):
        if y != last + 1:
            if first >= 0:
                yield first, last + 1
            first = y
        last = y
    if first >= 0:
        yield first, last + 1


def _moved(new: list[_Row], old: list[_Row]) -> int:
    """Return by how many lines most of the rows have moved up (negative: down); 0 where moving saves nothing."""
    count = len(new)
    if count != len(old) or count <= _LEAST_MOVED:
        return 0
    kept = sum(a == b for a, b in zip(new, old, strict=True))
    best, saved = 0, kept + _LEAST_MOVED - 1
    for lines in range(1, count - _LEAST_MOVED + 1):
        up = sum(a == b for a, b in zip(new, old[lines:], strict=False))
        down = sum(a == b for a, b in zip(new[lines:], old, strict=False))
        if max(up, down) > saved:
            best, saved = (lines, up) if up >= down else (-lines, down)
    return best


def _pieces(update: ChopsUpdate) -> Iterator[tuple[int, int, list[Strip]]]:
    """Yield (row, column, segments) of what is to be drawn."""
    for y, start, stop in update.spans:
        for end, (x, strip) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
            if strip is None or x >= stop or end <= start:
                continue
            first, last = max(x, start), min(end, stop)
            yield y, first, [strip.crop(first - x, last - x)]


def _changes(row: _Row, before: _Row) -> Iterator[tuple[int, int]]:
    """Yield (first, stop) of each run of cells that differ, those that lie close together as one."""
    if row == before:
        return
    first = last = -1
    for index, (cell, look, old_cell, old_look) in enumerate(zip_longest(*row, *before)):
        if cell == old_cell and look == old_look:
            continue
        if first >= 0 and index - last > _APART:
            yield first, last + 1
            first = index
        first = index if first < 0 else first
        last = index
    if first >= 0:
        yield first, min(last + 1, len(row[0]))


@lru_cache(maxsize=512)
def _single(text: str) -> bool:
    """Return whether each character fills one cell."""
    if text.isascii():
        return text.isprintable()
    return text.isprintable() and all(get_character_cell_size(character) == 1 for character in text)
