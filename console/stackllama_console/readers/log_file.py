"""Any part of a log's file, read when it is asked for: what a view shows far from the lines that are kept.

Blocks of whole lines are read from a place on, or up to it. Of a line longer than a block only what can be shown of it
is read.
"""

import os
from pathlib import Path

from msgspec import Struct

from stackllama_engine.contract.user_files import open_regular

from .log_levels import RANK, Level
from .logs import LONGEST, LogLine, LogReader, lines_of

BLOCK = 1 << 20
_PAGE = BLOCK // 2
_ENOUGH = 500
"""Lines that pass a filter; where fewer do, reading continues."""


class LogPage(Struct, frozen=True):
    """The lines of a part of a log that pass a filter. ``start`` and ``stop`` are places."""

    lines: list[LogLine]
    start: int
    stop: int


class LogFile:
    """The file that a reader follows, as far as its lines are ended. Open it in a ``with``.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, base: int, end: int) -> None:
        self._base = base
        self._end = end
        self._descriptor = open_regular(path)

    @classmethod
    def of(cls, reader: LogReader) -> "LogFile":
        """Open the file of a reader.

        Raises:
            OSError: it cannot be opened.
        """
        if reader.path is None:
            raise FileNotFoundError(2, "there is no log yet")
        return cls(reader.path, reader.base, reader.end)

    def __enter__(self) -> "LogFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def before(self, place: int, size: int = BLOCK) -> tuple[int, bytes]:
        """Return the lines that end at a place, itself where a line begins, and their place.

        Raises:
            OSError: the file cannot be read.
        """
        stop = max(0, place - self._base)
        start = max(0, stop - size)
        data = os.pread(self._descriptor, stop - start, start)
        if start:
            first = data.find(b"\n", 0, max(0, len(data) - 1)) + 1
            if not first:
                start = self._line_start(start)
                return self._base + start, os.pread(self._descriptor, LONGEST + 1, start)
            start, data = start + first, data[first:]
        return self._base + start, data

    def after(self, place: int, size: int = BLOCK) -> tuple[int, bytes]:
        """Return the place behind the lines that begin at a place, and those lines.

        Raises:
            OSError: the file cannot be read.
        """
        start = max(0, place - self._base)
        data = os.pread(self._descriptor, max(0, min(size, self._end - place)), start)
        stop = data.rfind(b"\n") + 1
        if data and not stop:
            return self._base + self._line_stop(start + len(data)), data[: LONGEST + 1]
        return place + stop, data[:stop]

    def page(self, place: int, direction: int, minimum: Level) -> LogPage:
        """Read the lines around a place that pass a filter.

        Args:
            place: where a line begins.
            direction: -1, 1: enough lines before or after it are read, however far away; 0: both.
            minimum: the least serious level.

        Raises:
            OSError: the file cannot be read.
        """
        start = stop = min(max(place, self._base), self._end)
        older: list[list[LogLine]] = []
        newer: list[LogLine] = []
        while start > self._base:
            start, data = self.before(start, _PAGE)
            older.append(_passing(lines_of(data, start), minimum))
            if direction > 0 or sum(map(len, older)) >= _ENOUGH or minimum == "debug":
                break
        while stop < self._end:
            begin = stop
            stop, data = self.after(begin, _PAGE)
            newer += _passing(lines_of(data, begin), minimum)
            if direction < 0 or len(newer) >= _ENOUGH or minimum == "debug" or stop == begin:
                break
        return LogPage([*(line for block in reversed(older) for line in block), *newer], start, stop)

    def _line_start(self, offset: int) -> int:
        """Return where the line begins that an offset is within."""
        while offset:
            start = max(0, offset - BLOCK)
            newline = os.pread(self._descriptor, offset - start, start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            offset = start
        return 0

    def _line_stop(self, offset: int) -> int:
        """Return the offset behind the line that an offset is within."""
        while data := os.pread(self._descriptor, BLOCK, offset):
            newline = data.find(b"\n")
            if newline >= 0:
                return offset + newline + 1
            offset += len(data)
        return self._end - self._base


def _passing(lines: list[LogLine], minimum: Level) -> list[LogLine]:
    if minimum == "debug":
        return lines
    return [line for line in lines if RANK[line.level] >= RANK[minimum]]
