"""All lines of a log that match a text: the whole file, in steps for a thread, in bounded memory.

From the newest line backwards, so that the match that is nearest to the end comes first, and then with the file as it
grows. A block of plain ASCII is searched as bytes; of any other each line is searched as it would be shown.
"""

import re
from array import array
from bisect import bisect_left, bisect_right

from .log_file import BLOCK, LogFile
from .log_levels import RANK, Level
from .logs import LONGEST, LogReader, lines_of

MOST = 100_000
"""Matches; a search that has found as many ends."""
_BLOCKS = 8
"""Searched in one step: hundredths of a second."""
_PLAIN = bytes([*range(32, 127), 10])


class LogSearch:
    """The places of the matching lines.

    Args:
        reader: whose file is searched, and the lines that it keeps of the files before.
        text: without a capital in it, capitals do not matter.
        minimum: the least serious level of lines that count.

    Attributes:
        pattern: finds the text within a line.
        base: that of the reader; when that is another one, the search is of no use.
        error: why the file could not be read; the search ends with it.
    """

    def __init__(self, reader: LogReader, text: str, minimum: Level = "debug") -> None:
        self._ignores_case = not any(letter.isupper() for letter in text)
        self.pattern = re.compile(re.escape(text), re.IGNORECASE if self._ignores_case else 0)
        self.base = reader.base
        self.error: str | None = None
        self._reader = reader
        self._minimum: Level = minimum
        self._needle = text.encode() if text.isascii() else None
        self._older: array[int] = array("q")  # descending
        self._newer: array[int] = array("q")  # ascending
        self._begun = self._back = self._next = reader.end
        self._kept = False  # whether the lines of the files before were searched

    def __len__(self) -> int:
        return len(self._older) + len(self._newer)

    @property
    def is_full(self) -> bool:
        """Whether there are more matches than are kept."""
        return len(self) >= MOST

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to search, for now."""
        if self.error is not None or self.is_full or self.base != self._reader.base:
            return True
        return self._kept and self._next >= self._reader.end

    @property
    def share(self) -> float:
        """How much of what there was at first has been searched, from 0 to 1."""
        return 1 - (self._back - self.base) / max(1, self._begun - self.base)

    def step(self) -> None:
        """Search some megabytes more; in a thread."""
        try:
            with LogFile.of(self._reader) as file:
                for _ in range(_BLOCKS):
                    if self.is_full:
                        break
                    if self._next < self._reader.end:
                        self._search_on(file)
                    elif self._back > self.base:
                        self._search_back(file)
                    else:
                        break
        except OSError as error:
            if self._reader.end > self.base:
                self.error = f"cannot search the log: {error.strerror or error}"
        if self._back <= self.base and not self._kept:
            self._kept = True
            older = [line for line in self._reader.lines if line.place < self.base]
            passing = [line.place for line in older if self._passes(line.level) and self.pattern.search(line.text)]
            self._older.extend(reversed(passing))

    def after(self, place: int) -> int | None:
        """Return the next match after a place, of those found so far; after the last one the first."""
        if not len(self):
            return None
        return self._at(self._count_to(place) % len(self))

    def before(self, place: int) -> int | None:
        """Return the last match before a place, of those found so far; before the first one the last."""
        if not len(self):
            return None
        return self._at(self._count_to(place - 1) - 1)

    def position(self, place: int) -> int | None:
        """Return which of the matches, from 1 on, this place is; None: none."""
        count = self._count_to(place)
        return count if count and self._at(count - 1) == place else None

    def _at(self, index: int) -> int:
        index %= len(self)
        older = len(self._older)
        return self._older[older - 1 - index] if index < older else self._newer[index - older]

    def _count_to(self, place: int) -> int:
        """Return how many matches are at a place or before it."""
        older = len(self._older) - bisect_left(self._older, -place, key=lambda at: -at)
        return older + bisect_right(self._newer, place)

    def _search_back(self, file: LogFile) -> None:
        start, data = file.before(self._back, BLOCK)
        self._older.extend(reversed(self._matching(data, start)))
        self._back = start

    def _search_on(self, file: LogFile) -> None:
        stop, data = file.after(self._next, BLOCK)
        self._newer.extend(self._matching(data, self._next))
        self._next = stop if stop > self._next else self._reader.end

    def _matching(self, data: bytes, place: int) -> list[int]:
        """Return the places of the lines that match, ascending."""
        if self._needle is not None and not data.translate(None, _PLAIN):
            places = [place + start for start in _starts(data, self._needle, self._ignores_case)]
            if not places or self._minimum == "debug":
                return places
        search = self.pattern.search
        return [line.place for line in lines_of(data, place) if search(line.text) and self._passes(line.level)]

    def _passes(self, level: Level) -> bool:
        return RANK[level] >= RANK[self._minimum]


def _starts(data: bytes, needle: bytes, ignores_case: bool) -> list[int]:
    """Return where the lines begin that hold a text within what is shown of them."""
    starts: list[int] = []
    searched = data.lower() if ignores_case else data
    needle = needle.lower() if ignores_case else needle
    at = searched.find(needle)
    while at >= 0:
        start = data.rfind(b"\n", 0, at) + 1
        if at + len(needle) <= start + LONGEST:
            starts.append(start)
        newline = data.find(b"\n", at)
        at = searched.find(needle, newline) if newline >= 0 else -1
    return starts
