"""Events of an attempt in ``events.jsonl``, one JSON object per line.

One writer per file, any number of readers. A record is one ``os.write`` on an ``O_APPEND`` descriptor, so a crash
truncates at most the last line; a writer that finds such a tail terminates it first. Records that do not fit on a full
disk wait in memory until there is room again. Blocks are allocated ahead beyond the file's end while there is room, so
that on a full disk a run can still report that it waits, and how it ended. What the supervisor noticed is in
``health.jsonl`` beside it. Readers keep an unterminated tail for later, count lines they cannot read, and notice
truncation and replacement.

Kinds and their fields:

=============  =====================================================================================
``phase``      ``phase``: load, train, rollout, score, update, evaluate, save, merge …; ``data.reason``: why it waits
``activity``   ``data.doing``: what a stage does before its first step; ``data.share``: how much of it is done, 0 to 1
``progress``   ``step`` of ``total_steps``
``metrics``    ``step``, ``metrics``: names as in TRL
``memory``     ``metrics``: peaks of the attempt in bytes (``allocated``, ``reserved``, ``device``, ``rss``);
               ``phase``; ``data.phase``: the same names, peaks of that phase alone (``rss``: at its end)
``samples``    ``step``, ``data.count``: lines added to ``samples.jsonl``
``checkpoint`` ``step``, ``data.path``
``health``     ``data.message``: a notice for the user (pairs dropped, wrong end token, throttling); of a health rule
               also ``step``, ``data.finding`` and ``data.link``: :class:`.health.Finding`
``request``    ``data.request``: save, sample, pause, continue, set, stop; ``data.key`` and ``data.value`` of set:
               a request that was served, at ``step``
``end``        ``data.exit_code``, ``data.cause``: the last record of an attempt
=============  =====================================================================================

All but ``progress``, ``metrics``, ``memory`` and ``samples`` have ``log``: the bytes of the attempt's ``log.txt`` then.
"""

import errno
import math
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from .atomic_files import open_private
from .disk_space import preallocate
from .line_reader import LineReader
from .redact import redactor
from .run_files import why_unreadable
from .times import UnixTime

Kind = Literal[
    "phase", "activity", "progress", "metrics", "memory", "samples", "checkpoint", "health", "request", "end"
]

Step = Annotated[int, Meta(ge=-(1 << 53), le=1 << 53)]
"""Exact as a float; a larger one is never a step, and would overflow computations."""

Offset = Annotated[int, Meta(ge=0, le=1 << 53)]

_PLACED = frozenset({"phase", "checkpoint", "health", "request", "end"})
"""Kinds that say how long the log was, so that they can be shown among its lines."""
_WAITING_BYTES = 8 << 20  # some 50,000 records
_AHEAD = 64 << 10  # bytes allocated beyond the file's end, again as soon as less than half is left
_ORDINARY, _URGENT, _LAST = _AHEAD // 2, _AHEAD // 4, 0  # of these, bytes a record must leave for more important ones


class Event(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):  # what JSON holds has no cycles
    """One record. Unknown kinds and keys of a newer writer are ignored, not refused."""

    seq: int
    time: UnixTime
    kind: str
    phase: str | None = None
    step: Step | None = None
    total_steps: Step | None = None
    metrics: dict[str, float | None] = {}
    nonfinite: list[str] = []
    data: dict[str, Any] = {}
    log: Offset | None = None


class Record(Struct, frozen=True, kw_only=True, gc=False):
    """An event for readers of millions of them: None where `Event` would build an empty container."""

    seq: int
    time: UnixTime
    kind: str
    phase: str | None = None
    step: Step | None = None
    total_steps: Step | None = None
    metrics: dict[str, float | None] | None = None
    nonfinite: list[str] | None = None
    data: dict[str, Any] | None = None
    log: Offset | None = None


class EventWriter:
    """The only writer of an events file.

    A failed *write* is never raised: a full disk must not stop training. Its record waits, with all that follow, until
    a later write finds room; a ``health`` event then says so.

    Attributes:
        lost: records that were dropped: too many waited, or the disk stayed full.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.lost = 0
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._error: OSError | None = None
        self._log = path.with_name("log.txt")
        self._truncated = _has_open_tail(path)
        self._begun = False  # a part of the first waiting record is in the file
        self._seq = _next_seq(path)
        self._descriptor = open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._size = self._allocated = os.fstat(self._descriptor).st_size
        self._allocates = True
        self._secrets = redactor()
        self._encode = msgspec.json.Encoder().encode

    @property
    def waits(self) -> bool:
        """Whether records wait for room on the disk."""
        return bool(self._waiting)

    def write(
        self,
        kind: Kind,
        *,
        phase: str | None = None,
        step: int | None = None,
        total_steps: int | None = None,
        metrics: dict[str, float] | None = None,
        data: dict[str, Any] | None = None,
        urgent: bool = False,
    ) -> None:
        """Append one record; NaN and infinity become null and are named in ``nonfinite``, secrets are redacted.

        An ``urgent`` record and the last one are also written on a full disk, ahead of those that wait.
        """
        line = self._line(kind, phase, step, total_steps, metrics or {}, data or {})
        self._flush()
        ahead = (urgent or kind == "end") and self._waiting and not self._begun
        if ahead and (written := self._put(line, _LAST if kind == "end" else _URGENT)):
            self._keep_rest(line[written:])
            return
        self._keep(line)
        self.write_waiting()

    def write_waiting(self) -> None:
        """Try again to write waiting records, and report it once all are written."""
        self._flush()
        if self._error and not self._waiting:
            notice = f"Events could not be written ({self._error.strerror}) and were delayed; {self.lost} were lost."
            self._error = None
            self._keep(self._line("health", None, None, None, {}, {"message": notice}))
            self._flush()

    def sync(self) -> None:
        """Sync to disk; called at checkpoints and at the end only. A failure (full network disk) is reported later."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._error = error

    def close(self) -> None:
        """Sync and close, and release what was allocated ahead. Records that still wait are lost."""
        self.write_waiting()
        self.lost += len(self._waiting)
        self._waiting.clear()
        with suppress(OSError):
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size)
        self.sync()
        os.close(self._descriptor)

    def _line(
        self,
        kind: Kind,
        phase: str | None,
        step: int | None,
        total_steps: int | None,
        metrics: dict[str, float],
        data: dict[str, Any],
    ) -> bytes:
        finite, nonfinite = _split_finite(metrics)
        event = Event(
            seq=self._seq,
            time=time.time(),
            kind=kind,
            phase=phase,
            step=step,
            total_steps=total_steps,
            metrics=finite,
            nonfinite=nonfinite,
            data=self._secrets.value(data),
            log=self._log_size() if kind in _PLACED else None,
        )
        self._seq += 1
        return self._encode(event) + b"\n"

    def _log_size(self) -> int | None:
        try:
            return self._log.stat().st_size
        except OSError:  # there is none: a record without it is as good
            return None

    def _keep(self, line: bytes) -> None:
        """Append a record to those that wait; of too many the oldest are dropped."""
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        while self._waiting_bytes > _WAITING_BYTES:
            self._waiting_bytes -= len(self._waiting.popleft())
            self.lost += 1
            self._truncated |= self._begun
            self._begun = False

    def _flush(self) -> None:
        while self._waiting and (written := self._put(self._waiting[0], _ORDINARY)):
            line = self._waiting.popleft()
            self._waiting_bytes -= len(line)
            self._keep_rest(line[written:])
            if self._begun:
                return

    def _keep_rest(self, rest: bytes) -> None:
        """Keep the rest of a partly written record; written again from its start, it could be there twice."""
        self._begun = bool(rest)
        if rest:
            self._waiting.appendleft(rest)
            self._waiting_bytes += len(rest)

    def _put(self, line: bytes, least: int) -> int:
        """Write a record and keep ``least`` bytes allocated behind it; return the bytes written, 0 if none fit."""
        data = b"\n" + line if self._truncated else line
        if not self._allocate(len(data), least):
            return 0
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            self._error = error
            return 0
        self._size += written
        if written < len(data):
            self._error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if written and self._truncated:
            self._truncated = False
            return written - 1
        return written

    def _allocate(self, length: int, least: int) -> bool:
        """Return whether so much may be written now; without allocation ahead only the write itself can tell."""
        end = self._size + length
        if self._allocates and end + _ORDINARY > self._allocated:
            try:
                self._allocates = preallocate(self._descriptor, self._size, length + _AHEAD)
            except OSError as error:
                self._error = error
                return end + least <= self._allocated
            self._allocated = end + _AHEAD
        return True


class EventReader(LineReader):
    """Incremental reader of one events file; see `LineReader` for its attributes.

    Attributes:
        error: why `read_what_can_be` could not read the file; None if it could.
    """

    error: str | None = None

    def read(self) -> Iterator[Event]:
        """Yield new complete records; none while the file is missing.

        Raises:
            OSError: it exists and cannot be read.
        """
        for lines in self.blocks():
            for event in self.decode(_EVENTS, lines):
                if event is not None:
                    yield event

    def read_what_can_be(self) -> Iterator[Event]:
        """Yield new complete records; of an unreadable file none, and `error` says why."""
        self.error = None
        try:
            yield from self.read()
        except OSError as error:
            self.error = f"{self.path} cannot be read: {why_unreadable(error)}."

    def read_batches(self) -> Iterator[list[Record]]:
        """Yield the records of `read` in batches of some thousand. Use one of the two.

        Raises:
            OSError: as `read`.
        """
        for lines in self.blocks():
            yield [record for record in self.decode(_RECORDS, lines) if record is not None]


_EVENTS = msgspec.json.Decoder(Event)
_RECORDS = msgspec.json.Decoder(Record)


def _split_finite(metrics: dict[str, float]) -> tuple[dict[str, float | None], list[str]]:
    nonfinite = [name for name, value in metrics.items() if not math.isfinite(value)]
    return {name: None if name in nonfinite else value for name, value in metrics.items()}, nonfinite


def _has_open_tail(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except FileNotFoundError:
        return False


def _next_seq(path: Path) -> int:
    last = -1
    for event in EventReader(path).read():
        last = event.seq
    return last + 1
