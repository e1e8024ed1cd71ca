"""The lines of a log that a view shows: the newest ones, or a page from anywhere in the file, and events among them."""

from bisect import bisect_left
from collections.abc import Sequence

from ...readers.log_file import LogPage
from ...readers.log_levels import RANK, Level
from ...readers.logs import LogLine, LogReader
from ...readers.timeline import RunEvent, event_lines


class LogRows:
    """Lines from a level up. As bounded as the reader, or the page: a line that it drops is dropped here.

    Attributes:
        minimum: the least serious level shown.
        shows_events: whether events stand among the lines; they do where there is no line.
        page: what is shown instead of the newest lines.
    """

    def __init__(self, minimum: Level = "debug") -> None:
        self.minimum: Level = minimum
        self.shows_events = False
        self.page: LogPage | None = None
        self._lines: list[LogLine] = []
        self._open: LogLine | None = None
        self._events: list[LogLine] = []
        self._merged: list[LogLine] = []
        self._first = self._last = -1  # of the newest lines: the first place kept, and the last one seen
        self._base = self._end = 0
        self._is_first = True
        self._told: tuple[object, ...] = ()

    def __len__(self) -> int:
        return len(self._merged)

    def __getitem__(self, index: int) -> LogLine:
        return self._merged[index]

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the log is older or newer than what is here."""
        return self.page is None and self._is_first

    @property
    def open_line(self) -> LogLine | None:
        """The line that is not ended yet."""
        return self._open if self.page is None else None

    @property
    def begins_log(self) -> bool:
        """Whether nothing of the log is older than what is here."""
        return self._is_first if self.page is None else self.page.start <= self._base

    @property
    def first_kept(self) -> int:
        """The place that the newest lines begin at."""
        return self._first

    def holds(self, place: int) -> bool:
        """Return whether the line at this place is here, if it passes the filter."""
        if self.page is None:
            return self._first <= place
        return self.page.start <= place < self.page.stop

    def update(self, reader: LogReader, events: Sequence[RunEvent]) -> None:
        """Take in what is new."""
        self._first, self._base, self._end = reader.first_place, reader.base, reader.end
        self._is_first = self._first <= reader.base
        if self.page is None:
            new = reader.since(self._last)
            self._last = new[-1].place if new else self._last
            if self.minimum != "debug":
                new = [line for line in new if self._passes(line)]
            gone = bisect_left(self._lines, self._first, key=_place)
            self._lines = [*self._lines[gone:], *new] if gone or new else self._lines
            line = reader.open_line
            self._open = line if line is not None and self._passes(line) else None
        told = (events, reader.attempt, reader.base, reader.end if events else 0)
        if told != self._told:
            self._told = told
            placed = event_lines(events, reader.attempt, reader.base, reader.end)
            self._events = [LogLine(place, "event", text) for place, text in placed]
        self._merge()

    def show_newest(self, reader: LogReader | None, events: Sequence[RunEvent]) -> None:
        """Show the newest lines, as they are kept."""
        self.page, self._lines, self._open, self._last = None, [], None, -1
        if reader is None:
            self._events, self._told = [], ()
            self._merge()
        else:
            self.update(reader, events)

    def show_page(self, page: LogPage) -> None:
        """Show a part of the file."""
        self.page, self._lines = page, page.lines
        self._merge()

    def show_events(self, shown: bool) -> None:
        """Show events among the lines, or no longer."""
        self.shows_events = shown
        self._merge()

    def index_of(self, place: int) -> int:
        """Return the index of the line at this place, or of the first one after it."""
        return bisect_left(self._merged, place, key=_place)

    def _merge(self) -> None:
        lines = self._lines
        if (self.shows_events or not (lines or self._open)) and (events := self._events_here()):
            lines = sorted([*events, *lines], key=_place)
        self._merged = [*lines, self._open] if self.page is None and self._open is not None else lines

    def _events_here(self) -> list[LogLine]:
        """Return the events between the first and the last line that are here."""
        events = self._events
        first = 0 if self.begins_log else bisect_left(events, self._first_place(), key=_place)
        stop = len(events) if self.page is None else bisect_left(events, self.page.stop, key=_place)
        if self.page is not None and self.page.stop >= self._end:
            stop = len(events)
        return events[first:stop]

    def _first_place(self) -> int:
        return self._first if self.page is None else self.page.start

    def _passes(self, line: LogLine) -> bool:
        return RANK[line.level] >= RANK[self.minimum]


def _place(line: LogLine) -> int:
    return line.place
