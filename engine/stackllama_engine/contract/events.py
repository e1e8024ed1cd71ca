"""``events.jsonl``: what happens in an attempt, one JSON object a line.

One writer a file, any number of readers. A record is one ``os.write`` on an ``O_APPEND`` descriptor, so a crash tears
at most the last line; a writer that finds such a tail ends it first. What a full disk does not take waits in memory
and is written when there is room again. Behind the file's end blocks are allocated ahead, as long as there is room, so
that on a full disk a run can still say that it waits, and how it ended. What the supervisor noticed stands beside it in
``health.jsonl``. Readers keep an unterminated tail for later, count the lines they cannot read, and notice truncation
and replacement.

Kinds and what they carry:

=============  =====================================================================================
``phase``      ``phase``: load, train, rollout, score, update, evaluate, save, merge …; ``data.reason``: why it waits
``progress``   ``step`` of ``total_steps``
``metrics``    ``step``, ``metrics``: names as in TRL
``memory``     ``metrics``: peaks of the attempt in bytes (``allocated``, ``reserved``, ``device``, ``rss``);
               ``phase``; ``data.phase``: the same names, peaks of that phase alone (``rss``: at its end)
``samples``    ``step``, ``data.count``: rows added to ``samples.jsonl``
``checkpoint`` ``step``, ``data.path``
``health``     ``data.message``: what a person should know (pairs dropped, wrong end token, throttling)
``request``    ``data.request``: save, sample, pause, continue, set, stop; ``data.key`` and ``data.value`` of set:
               a request that was served, at ``step``
``end``        ``data.exit_code``, ``data.cause``: the last record of an attempt
=============  =====================================================================================
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

Kind = Literal["phase", "progress", "metrics", "memory", "samples", "checkpoint", "health", "request", "end"]

Step = Annotated[int, Meta(ge=-(1 << 53), le=1 << 53)]
"""Exact as a float; a larger one is nobody's step, and would overflow whoever computes with it."""


_WAITING_BYTES = 8 << 20  # some 50,000 records
_AHEAD = 64 << 10  # bytes allocated behind the file's end, again as soon as less than a half is left
_ORDINARY, _URGENT, _LAST = _AHEAD // 2, _AHEAD // 4, 0  # of them, what a record must leave for the more important ones


class Event(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):  # what JSON holds has no cycles
    """One record. Unknown kinds and keys of a newer writer are kept out of the reader's way, not refused."""

    seq: int
    time: UnixTime
    kind: str
    phase: str | None = None
    step: Step | None = None
    total_steps: Step | None = None
    metrics: dict[str, float | None] = {}
    nonfinite: list[str] = []
    data: dict[str, Any] = {}


class Record(Struct, frozen=True, kw_only=True, gc=False):
    """An event as one who reads a million of them takes it: None where `Event` would build an empty container."""

    seq: int
    time: UnixTime
    kind: str
    phase: str | None = None
    step: Step | None = None
    total_steps: Step | None = None
    metrics: dict[str, float | None] | None = None
    nonfinite: list[str] | None = None
    data: dict[str, Any] | None = None


class EventWriter:
    """Appends events; the only writer of its file.

    A failed *write* is never raised: a full disk must not stop training. Its record waits, with all that follow, for
    the next one to find room; a ``health`` event then says so.

    Attributes:
        lost: records that were given up: more waited than memory should hold, or room never came.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.lost = 0
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._trouble: OSError | None = None
        self._torn = _has_open_tail(path)
        self._begun = False  # of the first that waits, a part is in the file
        self._seq = _next_seq(path)
        self._descriptor = open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._size = self._allocated = os.fstat(self._descriptor).st_size
        self._allocates = True
        self._secrets = redactor()
        self._encode = msgspec.json.Encoder().encode

    @property
    def waits(self) -> bool:
        """Whether there are records that found no room."""
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
        """Append one record; NaN and infinity become null and are named in ``nonfinite``, secrets are blanked.

        An ``urgent`` one, and the last one, are written on a full disk as well, ahead of those that wait.
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
        """Try again to write what found no room, and say so once all of it is there."""
        self._flush()
        if self._trouble and not self._waiting:
            told = f"Events could not be written ({self._trouble.strerror}) and came late; {self.lost} are lost."
            self._trouble = None
            self._keep(self._line("health", None, None, None, {}, {"message": told}))
            self._flush()

    def sync(self) -> None:
        """fsync; called at checkpoints and at the end only. Where it fails (a network's full disk) a remark says so."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._trouble = error

    def close(self) -> None:
        """Sync and close, and give back what was allocated ahead. What still waits is lost."""
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
        )
        self._seq += 1
        return self._encode(event) + b"\n"

    def _keep(self, line: bytes) -> None:
        """Put a record to those that wait; of too many the oldest are given up."""
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        while self._waiting_bytes > _WAITING_BYTES:
            self._waiting_bytes -= len(self._waiting.popleft())
            self.lost += 1
            self._torn |= self._begun
            self._begun = False

    def _flush(self) -> None:
        while self._waiting and (written := self._put(self._waiting[0], _ORDINARY)):
            line = self._waiting.popleft()
            self._waiting_bytes -= len(line)
            self._keep_rest(line[written:])
            if self._begun:
                return

    def _keep_rest(self, rest: bytes) -> None:
        """Of a record as much is in the file as there was room for; begun anew, it could be there twice."""
        self._begun = bool(rest)
        if rest:
            self._waiting.appendleft(rest)
            self._waiting_bytes += len(rest)

    def _put(self, line: bytes, least: int) -> int:
        """Bytes of the record that found room, while ``least`` stay allocated behind it; 0: it was not begun."""
        ended = b"\n" + line if self._torn else line
        if not self._allocate(len(ended), least):
            return 0
        try:
            written = os.write(self._descriptor, ended)
        except OSError as error:
            self._trouble = error
            return 0
        self._size += written
        if written < len(ended):
            self._trouble = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if written and self._torn:
            self._torn = False
            return written - 1
        return written

    def _allocate(self, length: int, least: int) -> bool:
        """Whether so much may be written now. A file system that cannot allocate ahead says so at the write itself."""
        end = self._size + length
        if self._allocates and end + _ORDINARY > self._allocated:
            try:
                self._allocates = preallocate(self._descriptor, self._size, length + _AHEAD)
            except OSError as error:
                self._trouble = error
                return end + least <= self._allocated
            self._allocated = end + _AHEAD
        return True


class EventReader(LineReader):
    """Follows one events file from where it last stopped; see `LineReader` for its attributes.

    Attributes:
        trouble: why `read_what_can_be` could not read the file; None when it could.
    """

    trouble: str | None = None

    def read(self) -> Iterator[Event]:
        """Records that are complete now and were not returned before; none while the file is missing.

        Raises:
            OSError: it is there and cannot be read.
        """
        for lines in self.blocks():
            for event in self.decode(_EVENTS, lines):
                if event is not None:
                    yield event

    def read_what_can_be(self) -> Iterator[Event]:
        """As `read`, for who has other things to tell: of a file that cannot be read nothing; `trouble` says why."""
        self.trouble = None
        try:
            yield from self.read()
        except OSError as error:
            self.trouble = f"{self.path} cannot be read: {why_unreadable(error)}."

    def read_batches(self) -> Iterator[list[Record]]:
        """The same records as `read` would return, some thousand at a time. Use one of the two.

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
