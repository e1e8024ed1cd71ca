"""The lines of a log that a view shows: those that pass its filter, and those of them that match a search."""

import re
from bisect import bisect_left, bisect_right

from ...readers.log_levels import RANK, Level
from ...readers.logs import LogLine, LogReader


class LogRows:
    """The kept lines of a reader from a level up, and the numbers of those that match.

    As bounded as the reader: a line that it drops is dropped here.

    Attributes:
        lines: those that pass the filter, in ascending order of their numbers.
        pattern: what is searched for; None: nothing.
        matches: numbers of the matching ones among ``lines``, ascending.
        minimum: the least serious level shown.
    """

    def __init__(self, minimum: Level = "debug") -> None:
        self.lines: list[LogLine] = []
        self.open_line: LogLine | None = None
        self.pattern: re.Pattern[str] | None = None
        self.matches: list[int] = []
        self.minimum: Level = minimum
        self._last = 0

    def __len__(self) -> int:
        return len(self.lines) + (self.open_line is not None)

    def __getitem__(self, index: int) -> LogLine:
        if index == len(self.lines) and self.open_line is not None:
            return self.open_line
        return self.lines[index]

    def update(self, reader: LogReader) -> int:
        """Take in what is new in the reader; return how many of the first rows went."""
        new, first = reader.since(self._last), reader.first_number
        gone = self.index_of(first)
        if gone:
            del self.lines[:gone]
            del self.matches[: bisect_left(self.matches, first)]
        if new:
            self._last = new[-1].number
            self._add(new)
        line = reader.open_line
        self.open_line = line if line is not None and self._passes(line) else None
        return gone

    def filter(self, reader: LogReader | None, minimum: Level) -> None:
        """Show lines from another level up."""
        self.minimum = minimum
        self.lines, self.matches, self.open_line, self._last = [], [], None, 0
        if reader is not None:
            self.update(reader)

    def search(self, text: str) -> None:
        """Look for a text in every line; empty: for nothing. Without a capital in it, capitals do not matter."""
        flags = 0 if any(letter.isupper() for letter in text) else re.IGNORECASE
        self.pattern = re.compile(re.escape(text), flags) if text else None
        self.matches = self._matching(self.lines)

    def index_of(self, number: int) -> int:
        """Return the index of the line with this number, or of the first one after it."""
        return bisect_left(self.lines, number, key=_number)

    def match_after(self, number: int) -> int | None:
        """Return the number of the next matching line; after the last one the first."""
        if not self.matches:
            return None
        return self.matches[bisect_right(self.matches, number) % len(self.matches)]

    def match_before(self, number: int) -> int | None:
        """Return the number of the matching line before; before the first one the last."""
        if not self.matches:
            return None
        return self.matches[bisect_left(self.matches, number) - 1]

    def match_position(self, number: int) -> int | None:
        """Return which of the matches, from 1 on, this line is; None: none."""
        index = bisect_left(self.matches, number)
        return index + 1 if index < len(self.matches) and self.matches[index] == number else None

    def _add(self, new: list[LogLine]) -> None:
        if self.minimum != "debug":
            new = [line for line in new if self._passes(line)]
        self.lines += new
        self.matches += self._matching(new)

    def _passes(self, line: LogLine) -> bool:
        return RANK[line.level] >= RANK[self.minimum]

    def _matching(self, lines: list[LogLine]) -> list[int]:
        if self.pattern is None:
            return []
        search = self.pattern.search
        return [line.number for line in lines if search(line.text)]


def _number(line: LogLine) -> int:
    return line.number
