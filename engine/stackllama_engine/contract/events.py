"""``events.jsonl``: what happens in an attempt, one JSON object a line.

One writer an attempt, any number of readers. A record is one ``os.write`` on an ``O_APPEND`` descriptor, so a
crash tears at most the last line; a writer that finds such a tail ends it first. Readers keep an unterminated
tail for later, count the lines they cannot read, and notice truncation and replacement.

Kinds and what they carry:

=============  =====================================================================================
``phase``      ``phase``: load, train, rollout, score, update, evaluate, save, merge …
``progress``   ``step`` of ``total_steps``
``metrics``    ``step``, ``metrics``: names as in TRL
``memory``     ``metrics``: bytes, by name (``allocated``, ``reserved``, ``device``, ``rss``)
``samples``    ``step``, ``data.count``: rows added to ``samples.jsonl``
``checkpoint`` ``step``, ``data.path``
``health``     ``data.message``: what a person should know (pairs dropped, wrong end token, throttling)
``end``        ``data.exit_code``, ``data.cause``: the last record of an attempt
=============  =====================================================================================
"""

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from .files import open_private

Kind = Literal["phase", "progress", "metrics", "memory", "samples", "checkpoint", "health", "end"]

_MAX_LINE = 1 << 20  # longer lines are nobody's record; they are counted as bad


class Event(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One record. Unknown kinds and keys of a newer writer are kept out of the reader's way, not refused."""

    seq: int
    time: float
    kind: str
    phase: str | None = None
    step: int | None = None
    total_steps: int | None = None
    metrics: dict[str, float | None] = {}
    nonfinite: list[str] = []
    data: dict[str, Any] = {}


class EventWriter:
    """Appends events; the only writer of its file.

    Raises:
        OSError: the file cannot be opened. A failed *write* is counted in ``lost``, never raised: a full disk
            must not stop training.
    """

    def __init__(self, path: Path) -> None:
        self.lost = 0
        self._torn = _has_open_tail(path)
        self._seq = _next_seq(path)
        self._descriptor = open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._encode = msgspec.json.Encoder().encode

    def write(
        self,
        kind: Kind,
        *,
        phase: str | None = None,
        step: int | None = None,
        total_steps: int | None = None,
        metrics: dict[str, float] | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        """Append one record; NaN and infinity become null and are named in ``nonfinite``."""
        finite, nonfinite = _split_finite(metrics or {})
        event = Event(
            seq=self._seq, time=time.time(), kind=kind, phase=phase, step=step, total_steps=total_steps,
            metrics=finite, nonfinite=nonfinite, data=data or {},
        )  # fmt: skip
        self._seq += 1
        line = self._encode(event) + b"\n"
        if self._torn:
            line = b"\n" + line
        try:
            written = os.write(self._descriptor, line)
        except OSError:
            self.lost += 1
            return
        self._torn = written != len(line)
        self.lost += self._torn

    def sync(self) -> None:
        """fsync; called at checkpoints and at the end only."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        os.close(self._descriptor)


class EventReader:
    """Follows one events file from where it last stopped.

    Attributes:
        bad_lines: lines that are not records.
        restarts: how often the file was found truncated or replaced; reading began anew each time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bad_lines = 0
        self.restarts = 0
        self._offset = 0
        self._tail = b""
        self._skipping = False
        self._inode: int | None = None
        self._decode = msgspec.json.Decoder(Event).decode

    def read(self) -> Iterator[Event]:
        """Records that are complete now and were not returned before; none while the file is missing."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            status = os.fstat(file.fileno())
            if self._inode not in (None, status.st_ino) or status.st_size < self._offset:
                self.restarts += 1
                self._offset, self._tail, self._skipping = 0, b"", False
            self._inode = status.st_ino
            file.seek(self._offset)
            while block := file.read(_MAX_LINE):
                self._offset += len(block)
                yield from self._lines(block)

    def _lines(self, block: bytes) -> Iterator[Event]:
        *lines, tail = (self._tail + block).split(b"\n")
        for line in lines:
            if self._skipping:  # the rest of an endless line, counted when it began
                self._skipping = False
            elif line:
                try:
                    yield self._decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    self.bad_lines += 1
        if len(tail) > _MAX_LINE and not self._skipping:
            self.bad_lines += 1
            self._skipping = True
        self._tail = b"" if self._skipping else tail


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
