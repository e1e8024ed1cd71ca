"""A log followed into a bounded buffer: that of a run's newest attempt, or any file."""

import os
from collections import deque
from itertools import islice
from pathlib import Path
from threading import Lock

from msgspec import Struct

from stackllama_engine.contract.run_dir import RunDir

from ..sanitise import log_line, one_line
from ..units import size
from .file_stamp import Stamp
from .line_follower import LineFollower
from .log_levels import Level, Levels

CAPACITY = 20_000
LONGEST = 8192
"""Bytes of a line."""
MOST_CHARACTERS = 8_000_000
"""In all lines together: thousands of endless lines do not fill the memory either."""
LOG_NAMES = (".log", "log.txt")
"""Endings of the names of another trainer's logs."""
MOST_BYTES = 64 << 20
"""Read at one poll; more than that is skipped."""


class LogLine(Struct, frozen=True, gc=False):
    """A line as a terminal would have left it, sanitised, tabs as blanks. ``number`` counts from the first one read."""

    number: int
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
        dropped: lines that came between two polls, faster than they could be kept, and were never in the buffer.
        error: why the log cannot be read now; None when all is well.
        version: grows with every change, also of ``open_line``.
    """

    def __init__(self, source: Path | RunDir, attempt: int | None = None, *, capacity: int = CAPACITY) -> None:
        self.open_line: LogLine | None = None
        self.dropped = 0
        self.error: str | None = None
        self.version = 0
        self._capacity = capacity
        self._lines: deque[LogLine] = deque()
        self._characters = 0
        self._count = 0
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
        return self.since(0)

    @property
    def first_number(self) -> int:
        """Number of the oldest line kept; that of the next line when there is none."""
        with self._lock:
            return self._lines[0].number if self._lines else self._count + 1

    @property
    def attempt(self) -> int | None:
        """The attempt that is followed; None for a plain file, and before there is one."""
        return self._attempt

    def since(self, number: int) -> list[LogLine]:
        """Return the kept lines after the one with this number."""
        with self._lock:
            lines = self._lines
            if not lines or lines[-1].number <= number:
                return []
            wanted = min(len(lines), lines[-1].number - number)
            if wanted == len(lines):
                return list(lines)
            newest = list(islice(reversed(lines), wanted))
        newest.reverse()
        return [line for line in newest if line.number > number]

    def poll(self) -> int:
        """Read what was written since; return how many lines came, those that were dropped included."""
        before = self._count
        try:
            self._switch()
            if self._follower is not None:
                self._read(self._follower)
            reason = None
        except OSError as error:
            reason = one_line(f"cannot read the log: {error.strerror or error}")
        if reason != self.error:
            self.error = reason
            self.version += 1
        return self._count - before

    def _switch(self) -> None:
        """Switch to the newest attempt, once what the older one left has been read."""
        if self._run is None or self._folder is None or not self._folder.changed():
            return
        numbers = [int(path.name) for path in self._run.attempt_dirs() if path.name.isascii()]
        number = max(numbers, default=None) if self._wanted is None else self._wanted
        if number is None or number == self._attempt or number not in numbers:
            return
        if self._follower is not None:
            self._read(self._follower)
            if (last := self._follower.finish()) is not None:
                self._take([last])
        if number > 1:
            self._mark(f"attempt {number}")
        self._attempt = number
        self._follower = LineFollower(self._run.attempt_dir(number) / "log.txt", longest=LONGEST)

    def _read(self, follower: LineFollower) -> None:
        restarts, skipped = follower.restarts, follower.skipped
        waiting: deque[bytes] = deque(maxlen=self._capacity)
        count = 0
        for lines in follower.read(MOST_BYTES):
            if follower.restarts != restarts:
                restarts = follower.restarts
                self._mark("the log was restarted")
            if follower.skipped != skipped:
                self._mark(f"{size(follower.skipped - skipped)} skipped")
                skipped = follower.skipped
            waiting.extend(lines)
            count += len(lines)
        if follower.restarts != restarts:
            self._mark("the log was restarted")
        older = count - len(waiting)
        if self._count:
            self.dropped += older
        self._count += older  # of the first poll they are simply older than what is kept
        self._take(waiting)
        self._show_rest(follower.rest)

    def _take(self, raw: "deque[bytes] | list[bytes]") -> None:
        if not raw:
            return
        level, number = self._levels.of, self._count
        new_lines: list[LogLine] = []
        characters = 0
        for number, line in enumerate(raw, start=self._count + 1):
            text = _clean(line)
            characters += len(text)
            new_lines.append(LogLine(number, level(text), text))
        self._keep(new_lines, characters, number)

    def _mark(self, text: str) -> None:
        self._levels = Levels()
        self._keep([LogLine(self._count + 1, "mark", f"--- {text} ---")], len(text) + 8, self._count + 1)

    def _keep(self, new_lines: list[LogLine], characters: int, count: int) -> None:
        lines = self._lines
        with self._lock:
            lines.extend(new_lines)
            self._characters += characters
            self._count = count
            while len(lines) > self._capacity or (self._characters > MOST_CHARACTERS and len(lines) > 1):
                self._characters -= len(lines.popleft().text)
            self.version += 1

    def _show_rest(self, rest: bytes) -> None:
        text = _clean(rest) if rest else ""
        line = LogLine(self._count + 1, Levels().of(text), text) if text else None
        if line != self.open_line:
            self.open_line = line
            self.version += 1


def _clean(line: bytes) -> str:
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
