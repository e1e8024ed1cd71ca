"""Text in terminal cells: cut, padded and wrapped to a width, wide characters counted as the two cells they take."""

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from ...units import NO_BREAK, unbroken

ELLIPSIS = "…"
_LEAST_MIDDLE = 6
Piece = tuple[str, Style]


def cut(text: str, width: int, *, keep_end: bool = False, ellipsis: str = ELLIPSIS) -> str:
    """Return the text in at most ``width`` cells; an ellipsis marks a cut at the end, with ``keep_end`` in front."""
    if cell_len(text) <= width:
        return text
    if width <= 1:
        return ellipsis[: max(0, width)]
    if not keep_end:
        return set_cell_size(text, width - 1).rstrip() + ellipsis
    tail = text
    while cell_len(tail) > width - 1:
        tail = tail[1:]
    return ellipsis + tail


def cut_middle(text: str, width: int, *, ellipsis: str = ELLIPSIS) -> str:
    """Return the text in at most ``width`` cells, cut in its middle: of names that begin alike, the ends differ."""
    if cell_len(text) <= width:
        return text
    if width < _LEAST_MIDDLE:
        return cut(text, width, ellipsis=ellipsis)
    tail = cut(text, width * 3 // 5, keep_end=True, ellipsis=ellipsis)
    return set_cell_size(text, width - cell_len(tail)) + tail


def fit(text: str, width: int, *, ellipsis: str = ELLIPSIS) -> str:
    """Return the text in exactly ``width`` cells."""
    return set_cell_size(cut(text, width, ellipsis=ellipsis), max(0, width))


def wrap(text: str, width: int, most: int) -> list[str]:
    """Return at most ``most`` lines of ``width`` cells, broken at blanks, never between a number and its unit.

    The last one is cut where more follows.
    """
    lines: list[str] = []
    line = ""
    words = [word.replace(NO_BREAK, " ") for word in unbroken(text).split()]
    for position, word in enumerate(words):
        longer = f"{line} {word}" if line else word
        if not line or cell_len(longer) <= width:
            line = longer
            continue
        if len(lines) == most - 1:
            return [*lines, cut(" ".join([line, *words[position:]]), width)]
        lines.append(cut(line, width))
        line = word
    return [*lines, cut(line, width)] if line else lines


def strip_of(pieces: list[Piece], width: int, rest: Style) -> Strip:
    """Return styled pieces as one line of exactly ``width`` cells; every segment has a style."""
    segments = [Segment(text, style) for text, style in pieces if text]
    return Strip(segments).adjust_cell_length(width, rest)
