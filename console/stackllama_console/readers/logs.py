"""A log followed into a bounded buffer: that of a run's newest attempt, or any file."""

import os
from collections import deque
from collections.abc import Iterable
from itertools import accumulate, takewhile
from pathlib import Path
from threading import Lock

from msgspec import Struct

from stackllama_engine.contract.run_dir import RunDir

from ..sanitise import log_line, one_line
from .file_stamp import Stamp
from .line_follower import LineFollower, shortened
from .log_levels import Level, Levels

CAPACITY = 20_000
LONGEST = 8192
"""Bytes of a line."""
MOST_CHARACTERS = 8_000_000
"""In all lines together: thousands of endless lines do not fill the memory either."""
LOG_NAMES = (".log", "log.txt")
"""Endings of the names of another trainer's logs."""
MOST_BYTES = 64 << 20
"""Read at one poll; of more than that only the end is kept, the rest is in the file."""


class LogLine(Struct, frozen=True, gc=False):
    """A line as a terminal would have left it, sanitised, tabs as blanks.

    ``place`` orders the lines of a log: of a file's line its offset plus `LogReader.base`, whether it is kept or not.
    """

    place: int
    level: Level
    text: str


class LogReader:
    """Follows a log. Poll it in one thread, read it in another.

    Args:
        source: a file, or a run; of a run the newest attempt's log, and the next one as soon as there is one.
        attempt: only this attempt of the run.
        capacity: lines kept.

    Attributes:
        open_line: what was written after the last line's end so far: a progress bar, say.
        base: the place of the first byte of the file that is followed; grows when another file is.
        error: why the log cannot be read now; None when all is well.
        version: grows with every change, also of ``open_line``.
    """

    def __init__(self, source: Path | RunDir, attempt: int | None = None, *, capacity: int = CAPACITY) -> None:
        self.open_line: LogLine | None = None
        self.base = 0
        self.error: str | None = None
        self.version = 0
        self._capacity = capacity
        self._lines: deque[LogLine] = deque()
        self._characters = 0
        self._last = -1  # the place of the newest line
        self._restarts = self._skipped = 0
        self._lock = Lock()
        self._levels = Levels()
        self._run = source if isinstance(source, RunDir) else None
        self._folder = Stamp(source.attempts) if isinstance(source, RunDir) else None
        self._attempt: int | None = None
        self._wanted = attempt
        self._follower = None if isinstance(source, RunDir) else LineFollower(source, longest=LONGEST)

    @property
    def lines(self) -> list[LogLine]:
        """The lines kept, oldest first."""
        with self._lock:
            return list(self._lines)

    @property
    def first_place(self) -> int:
        """The place of the oldest line kept; that of the next line when there is none."""
        with self._lock:
            return self._lines[0].place if self._lines else self.end

    @property
    def end(self) -> int:
        """The place behind the file's last line that is ended."""
        return self.base + (self._follower.end if self._follower else 0)

    @property
    def path(self) -> Path | None:
        """The file that is followed; None for a run before its first attempt."""
        return self._follower.path if self._follower else None

    @property
    def attempt(self) -> int | None:
        """The attempt that is followed; None for a plain file, and before there is one."""
        return self._attempt

    def since(self, place: int) -> list[LogLine]:
        """Return the kept lines after this place."""
        with self._lock:
            newest = list(takewhile(lambda line: line.place > place, reversed(self._lines)))
        newest.reverse()
        return newest

    def poll(self) -> int:
        """Read what was written since; return how many lines came, those that were not kept included."""
        count, reason = 0, None
        try:
            count = self._switch()
            if self._follower is not None:
                count += self._read(self._follower)
        except OSError as error:
            reason = one_line(f"cannot read the log: {error.strerror or error}")
        if reason != self.error:
            self.error = reason
            self.version += 1
        return count

    def _switch(self) -> int:
        """Switch to the newest attempt, once what the older one left has been read; return how many lines that was."""
        if self._run is None or self._folder is None or not self._folder.changed():
            return 0
        numbers = [int(path.name) for path in self._run.attempt_dirs() if path.name.isascii()]
        number = max(numbers, default=None) if self._wanted is None else self._wanted
        if number is None or number == self._attempt or number not in numbers:
            return 0
        count = 0
        if self._follower is not None:
            count = self._read(self._follower)
            start = self._follower.end
            if (last := self._follower.finish()) is not None:
                self._take([(start, last)])
        self._begin(f"attempt {number}" if number > 1 else "")
        self._attempt, self._restarts, self._skipped = number, 0, 0
        self._follower = LineFollower(self._run.attempt_dir(number) / "log.txt", longest=LONGEST)
        return count

    def _read(self, follower: LineFollower) -> int:
        """Read on; return how many lines came."""
        waiting: deque[tuple[int, bytes]] = deque(maxlen=self._capacity)
        count = 0
        for lines in follower.read(MOST_BYTES):
            self._notice_gaps(follower)
            waiting.extend(zip(follower.starts, lines, strict=True))
            count += len(lines)
        self._notice_gaps(follower)
        if count > len(waiting):
            self._forget()
        self._take(waiting)
        self._show_rest(follower.rest)
        return count

    def _notice_gaps(self, follower: LineFollower) -> None:
        """Begin anew where the file was replaced, and where a part of it was passed over."""
        if follower.restarts != self._restarts:
            self._restarts = follower.restarts
            self._begin("the log was restarted")
        if follower.skipped != self._skipped:
            self._skipped = follower.skipped
            self._forget()

    def _begin(self, mark: str) -> None:
        """Let another file follow the lines that are kept, with a divider between them."""
        self._levels = Levels()
        if mark:
            self._keep([LogLine(self._last + 1, "mark", f"--- {mark} ---")])
        self.base = self._last + 1

    def _forget(self) -> None:
        """Drop what was kept before a gap: the lines kept follow each other."""
        self._levels = Levels()
        with self._lock:
            self._lines.clear()
            self._characters = 0

    def _take(self, raw: Iterable[tuple[int, bytes]]) -> None:
        base, level = self.base, self._levels.of
        texts = ((base + start, cleaned(line)) for start, line in raw)
        if new_lines := [LogLine(place, level(text), text) for place, text in texts]:
            self._keep(new_lines)

    def _keep(self, new_lines: list[LogLine]) -> None:
        lines = self._lines
        with self._lock:
            lines.extend(new_lines)
            self._characters += sum([len(line.text) for line in new_lines])
            self._last = new_lines[-1].place
            while len(lines) > self._capacity or (self._characters > MOST_CHARACTERS and len(lines) > 1):
                self._characters -= len(lines.popleft().text)
            self.version += 1

    def _show_rest(self, rest: bytes) -> None:
        text = cleaned(rest) if rest else ""
        line = LogLine(self.end, Levels().of(text), text) if text else None
        if line != self.open_line:
            self.open_line = line
            self.version += 1


def lines_of(data: bytes, place: int) -> list[LogLine]:
    """Return the lines of a part of a log that begins with a line.

    Args:
        data: whole lines; the last one may be unended if it is longer than `LONGEST`.
        place: of the first byte.
    """
    raw = data.split(b"\n")
    if not raw[-1]:
        raw.pop()
    level = Levels().of
    places = accumulate((len(line) + 1 for line in raw), initial=place)
    texts = (cleaned(shortened(line, LONGEST)) for line in raw)
    return [LogLine(at, level(text), text) for at, text in zip(places, texts, strict=False)]


def cleaned(line: bytes) -> str:
    """Return the text of a line as it is shown."""
    text = log_line(line.decode("utf-8", "replace"))
    return text.expandtabs(8) if "\t" in text else text


def newest_log(folder: Path) -> Path | None:
    """Return the log of another trainer's directory: ``trainer.log``, ``log.txt``, else the newest ``*.log``.

    Links are left out: what they lead to is not in the directory.
    """
    try:
        with os.scandir(folder) as entries:
            candidates = {
                entry.name: entry.stat(follow_symlinks=False).st_mtime_ns
                for entry in entries
                if entry.name.endswith(LOG_NAMES) and entry.is_file(follow_symlinks=False)
            }
    except OSError:
        return None
    for name in ("trainer.log", "log.txt"):
        if name in candidates:
            return folder / name
    return folder / max(candidates, key=lambda name: (candidates[name], name)) if candidates else None
