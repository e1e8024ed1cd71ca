"""Output of the command line: data on stdout, messages on stderr, everything sanitised."""

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import msgspec

from ..sanitise import one_line, sanitise
from ..units import cut

PROGRAM = "stackllama-console"

_ESCAPE_IN_JSON = re.compile(
    "[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_COLOURS = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "bold": "1", "dim": "2"}


def show(text: str = "") -> None:
    """Print a line of data on stdout."""
    sys.stdout.write(sanitise(text) + "\n")


def say(text: str = "") -> None:
    """Print a message on stderr."""
    sys.stderr.write(sanitise(text) + "\n")
    sys.stderr.flush()


def say_notes(notes: Sequence[str]) -> None:
    """Print notes on how keys of a recipe were read, on stderr."""
    for note in notes:
        say(f"note: {one_line(note)}")


def show_json(value: Any) -> None:
    """Print one JSON document on stdout; NaN and infinity are null, control characters ``\\uXXXX``."""
    _write_json(value, indent=2)


def show_json_line(value: Any) -> None:
    """Print a JSON document as one line, for a command that prints one after another; see :func:`show_json`."""
    _write_json(value, indent=None)


def _write_json(value: Any, indent: int | None) -> None:
    plain = msgspec.json.decode(msgspec.json.encode(value))
    text = json.dumps(plain, indent=indent, ensure_ascii=False)
    sys.stdout.write(_ESCAPE_IN_JSON.sub(_json_escape, text) + "\n")


def paint(text: str, colour: str, stream: TextIO) -> str:
    """Colour our own text on a terminal, unless ``NO_COLOR`` is set (https://no-color.org)."""
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if has_colour(stream) else text


def has_colour(stream: TextIO) -> bool:
    """Return whether colour may be used on a stream."""
    return can_redraw(stream) and not os.environ.get("NO_COLOR")


def can_redraw(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that can redraw lines."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def width(stream: TextIO) -> int | None:
    """Return the columns of the terminal, or None for a file or a pipe, where nothing must be cut."""
    return shutil.get_terminal_size((80, 24)).columns if stream.isatty() else None


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]], colours: dict[str, str], column: int) -> None:
    """Print rows under a header on stdout; the last column is cut to the terminal's width.

    Args:
        header: titles of the columns.
        rows: cells as text.
        colours: text of a cell → its colour.
        column: index of the column that is coloured.
    """
    cells = [[one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(header))]
    limit = width(sys.stdout)
    for number, row in enumerate(cells):
        padded = [cell.ljust(size) for cell, size in zip(row, widths, strict=True)]
        before = sum(widths[:-1]) + 2 * (len(widths) - 1)
        if limit is not None:
            padded[-1] = cut(row[-1], max(0, limit - before))
        if number and (colour := colours.get(row[column])):
            padded[column] = paint(padded[column], colour, sys.stdout)
        line = "  ".join(padded).rstrip()
        sys.stdout.write((line if number else paint(line, "bold", sys.stdout)) + "\n")


def show_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Print ``name  value`` lines on stdout, names in one column; a value's further lines are indented under it."""
    size = max((len(name) for name, _ in fields), default=0)
    for name, value in fields:
        show(f"{name.ljust(size)}  {sanitise(value).replace(chr(10), chr(10) + ' ' * (size + 2))}".rstrip())


def _json_escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code <= 0xFFFF:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
