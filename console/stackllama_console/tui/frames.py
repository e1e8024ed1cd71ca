"""Minimal terminal updates: the cells that differ from what is displayed, and nothing else.

Textual 8 sends a changed region from the left edge of its widget on, with all colours anew for each piece of text. Over
SSH that is four fifths of the bytes of a run's monitor. Here each row as it was last sent is kept, and of colours and
attributes only what changes is said. A full repaint (another screen, another size) is sent whole.
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
_APART = 6  # unchanged cells between two changes that cost less than moving the cursor over them


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
        if isinstance(update, LayoutUpdate):
            for y, strips in enumerate(update.strips):
                self._rows.pop(y, None)
                self._paint(pen, y, 0, strips, system)
        else:
            for y, x, strips in _pieces(update):
                self._paint(pen, y, x, strips, system)
        return pen.finish()

    def _paint(self, pen: "_Pen", y: int, x: int, strips: Iterable[Strip], system: ColorSystem) -> None:
        strips = list(strips)
        cells: list[str] = []
        looks: list[Look] = []
        single = True
        for strip in strips:
            for text, style, control in strip:
                if control:
                    continue
                look = self._look(style, system)
                single = single and _single(text)
                cells += text
                looks += [look] * len(text)
        known = self._rows.get(y)
        if (
            not single
        ):  # characters of two cells or none: sent as they are, and the row is not compared until it is whole
            self._rows[y] = None
            pen.write(y, x, cells, looks)
            return
        if known is None:
            whole = x == 0 and len(cells) >= self._size.width
            self._rows[y] = (cells, looks) if whole else None
            pen.write(y, x, cells, looks)
            return
        old_cells, old_looks = known
        stop = x + len(cells)
        for first, last in _changes(cells, looks, (old_cells[x:stop], old_looks[x:stop])):
            pen.write(y, x + first, cells[first:last], looks[first:last])
        old_cells[x:stop], old_looks[x:stop] = cells, looks

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
    """Writes cells, and remembers how the terminal is writing."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._look = _PLAIN

    def write(self, y: int, x: int, cells: list[str], looks: list[Look]) -> None:
        """Write some cells of a row."""
        if not cells:
            return
        self._parts.append(f"\x1b[{y + 1};{x + 1}H")
        for cell, look in zip(cells, looks, strict=True):
            if look is not self._look and look != self._look:
                self._turn_to(look)
            self._parts.append(cell)

    def _turn_to(self, look: Look) -> None:
        before, self._look = self._look, look
        if before[0] and look[0] != before[0]:  # of attributes only all can be ended together
            wanted = ["0", *(part for part, plain in zip(look, _PLAIN, strict=True) if part != plain)]
        else:
            wanted = [part for part, old in zip(look, before, strict=True) if part != old]
        self._parts.append(f"\x1b[{';'.join(wanted)}m")

    def finish(self) -> str:
        """Return all of it, colours put back."""
        if self._look != _PLAIN:
            self._parts.append("\x1b[0m")
        return "".join(self._parts)


def _pieces(update: ChopsUpdate) -> Iterator[tuple[int, int, list[Strip]]]:
    """Yield (row, column, segments) of what is to be drawn."""
    for y, start, stop in update.spans:
        for end, (x, strip) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
            if strip is None or x >= stop or end <= start:
                continue
            first, last = max(x, start), min(end, stop)
            yield y, first, [strip.crop(first - x, last - x)]


def _changes(cells: list[str], looks: list[Look], before: _Row) -> Iterator[tuple[int, int]]:
    """Yield (first, stop) of each run of cells that differ, those that lie close together as one."""
    if (cells, looks) == before:
        return
    first = last = -1
    for index, (cell, look, old_cell, old_look) in enumerate(zip_longest(cells, looks, *before)):
        if cell == old_cell and look == old_look:
            continue
        if first >= 0 and index - last > _APART:
            yield first, last + 1
            first = index
        first = index if first < 0 else first
        last = index
    if first >= 0:
        yield first, min(last + 1, len(cells))


@lru_cache(maxsize=512)
def _single(text: str) -> bool:
    """Return whether each character fills one cell."""
    if text.isascii():
        return text.isprintable()
    return text.isprintable() and all(get_character_cell_size(character) == 1 for character in text)
