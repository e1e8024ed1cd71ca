"""The bar of a memory budget and the brackets under it, all on one scale. Pure: bytes in, styled pieces out.

A component is identified by its letter and its pattern; colour only helps.
"""

from collections.abc import Callable

from msgspec import Struct
from rich.cells import cell_len
from rich.style import Style

from ...readers.budget_view import BudgetView, Memory, gib, gib_range
from ...sanitise import one_line
from .cells import Piece, cut

COLOURS = 6
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

StyleOf = Callable[[str], Style]


class Glyphs(Struct, frozen=True):
    """Characters that budgets are drawn with. ``patterns`` empty: a component is its letter, repeated."""

    patterns: str = "█▓▒░"
    overhead: str = "╌"
    free: str = "·"
    taken: str = "×"
    capacity: str = "┃"
    bracket: str = "├─┤"
    point: str = "┼"
    beyond: str = "→"
    minus: str = "−"
    verdicts: str = "✓!✗?"
    """yes, tight, no, unknown."""


ASCII = Glyphs("", "-", ".", "x", "|", "[-]", "+", ">", "-", "v!x?")


def letter(index: int) -> str:
    """Return a component's letter in the bar."""
    return _LETTERS[index % len(_LETTERS)]


def pattern(index: int, glyphs: Glyphs) -> str:
    """Return the pattern that a component is drawn with."""
    return glyphs.patterns[index % len(glyphs.patterns)] if glyphs.patterns else letter(index)


def scale_of(view: BudgetView) -> int:
    """Return the bytes at the right end: available or needed, whichever is more."""
    rules = 0 if view.device[1] else max((rule.high for rule in view.rules), default=0)
    return max(1, view.device[1], rules, *(memory.total for memory in view.memories))


def bar(view: BudgetView, memory: Memory | None, width: int, style: StyleOf, glyphs: Glyphs) -> list[Piece]:
    """Draw the components against one device's memory, in exactly ``width`` cells."""
    scale = scale_of(view)

    def column(count: int) -> int:
        return min(width, round(count * width / scale))

    dim = style("dim")
    total = memory.total if memory else 0
    cells: list[Piece] = [(glyphs.free, dim)] * column(total) + [(" ", dim)] * (width - column(total))
    if memory:
        for place in range(column(memory.free), column(total)):
            cells[place] = (glyphs.taken, dim)
    start, counted = 0, 0
    for index, part in enumerate(view.parts):
        counted += part.bytes
        end = max(column(counted), 1 if counted == view.allocated and counted else 0)
        cells[start:end] = _part_cells(index, end - start, style, glyphs)
        start = max(start, end)
    for place in range(start, column(view.device[1])):
        cells[place] = (glyphs.overhead, style("mark"))
    if memory:
        cells[max(0, column(total) - 1)] = (glyphs.capacity, style("capacity"))
    return cells[:width]


def _part_cells(index: int, count: int, style: StyleOf, glyphs: Glyphs) -> list[Piece]:
    look = style(f"part-{index % COLOURS + 1}")
    cells = [(pattern(index, glyphs), look)] * max(0, count)
    if count > 1:
        cells[0] = (letter(index), look + Style(reverse=bool(glyphs.patterns), bold=True))
    return cells


def bracket(interval: tuple[int, int], name: str, scale: int, width: int, look: Style, glyphs: Glyphs) -> list[Piece]:
    """Draw an interval on the bar's scale, with its name and sizes on the side that has room for them."""
    sizes = gib_range(interval)
    low, high = (round(end * width / scale) for end in interval)
    if low >= width:
        text = _named(name, f"{sizes} {glyphs.beyond}", width)
        return [(" " * (width - cell_len(text)), look), (text, look)]
    start, end = min(low, width - 1), max(low, min(high, width) - 1)
    size = end - start + 1
    drawn = glyphs.point if size == 1 else glyphs.bracket[0] + glyphs.bracket[1] * (size - 2) + glyphs.bracket[2]
    after, before = width - end - 2, start - 1
    if max(after, before) < cell_len(_short(name)) + 1 + len(sizes):
        return [(_named(name, sizes, width), look)]
    if cell_len(f"{name} {sizes}") <= after or after >= before:
        return [(" " * start, look), (drawn + " ", look), (_named(name, sizes, after), look)]
    text = _named(name, sizes, before)
    return [(" " * (before - cell_len(text)), look), (f"{text} ", look), (drawn, look)]


def _named(name: str, sizes: str, width: int) -> str:
    """Join name and sizes; without room for both, shorten the name, then cut."""
    if cell_len(f"{name} {sizes}") > width:
        name = _short(name)
    return cut(f"{cut(name, max(1, width - len(sizes) - 1))} {sizes}", width)


def _short(name: str) -> str:
    """Return ``int8 + LoRA`` of ``int8 + LoRA: 1.2–1.4 GB/B``."""
    return name.partition(": ")[0]


def memory_label(memories: tuple[Memory, ...], width: int) -> str:
    """Describe one kind of device: how many, its name, its memory, and how much is free where least is."""
    least = min(memories, key=lambda one: one.free)
    alike = all(one.free == least.free for one in memories)
    where = f"{least.device}: " if least.device and not alike else ""
    sizes = f"{gib(least.total)}, {where}{gib(least.free)} free"
    count = f"{len(memories)} × " if len(memories) > 1 else f"{least.device} " if least.device else ""
    name = f"{count}{one_line(least.name)}"
    return f"{cut(name, max(0, width - len(sizes) - 2))}  {sizes}"


def groups(memories: tuple[Memory, ...]) -> list[tuple[Memory, ...]]:
    """Group devices of the same name and size; first the group with the least free, which the verdict is about."""
    by_kind: dict[tuple[str, int], list[Memory]] = {}
    for memory in memories:
        by_kind.setdefault((memory.name, memory.total), []).append(memory)
    return sorted((tuple(group) for group in by_kind.values()), key=lambda group: min(one.free for one in group))
