"""What other trainers write, each kind of file read as it grows into curves of its own."""

import json
import re
from collections import defaultdict
from math import isfinite, nan
from pathlib import Path
from typing import Any, cast

from ..sanitise import one_line
from .columns import NAMES
from .eta import Pace
from .line_follower import LineFollower
from .regular_file import read_whole
from .series import Series
from .stamp import Stamp
from .tensorboard import EventFile, Scalar

MOST_JSON = 64 << 20
"""Bytes of a ``trainer_state.json``; a larger one is not read."""

_MOST_STEP = 1 << 53
_GIB = 1 << 30
_TIMES = re.compile(r"(?:(\d{1,6}) days?, )?(\d{1,4}):(\d\d):(\d\d)")
_NO_METRICS = frozenset({"step", "current_steps", "total_steps", "percentage", "elapsed_time", "remaining_time"})
_RENAMED = {"lr": "learning_rate"}
_MEMORY = {"vram_allocated": "allocated", "vram_reserved": "reserved"}


class Curves:
    """Series by sanitised name. ``series`` is replaced, never changed, when a name comes up for the first time."""

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}
        self._waiting: dict[str, tuple[list[float], list[float | None]]] = defaultdict(lambda: ([], []))

    def add(self, name: str, step: int, value: float | None) -> None:
        """A value, given to its series by `flush`."""
        steps, values = self._waiting[name]
        steps.append(step)
        values.append(value)

    def flush(self) -> bool:
        """Whether there was anything."""
        if not self._waiting:
            return False
        series = self.series.copy()
        for name, (steps, values) in self._waiting.items():
            clean = one_line(name)
            if clean not in series and len(series) < NAMES:
                series[clean] = Series(clean)
            if clean in series:
                series[clean].extend(steps, values)
        self._waiting.clear()
        if len(series) != len(self.series):
            self.series = series
        return True


class StateSource:
    """``trainer_state.json`` of transformers' Trainer: written whole at each checkpoint and at the end.

    Attributes:
        step, total_steps: as it says.
        done: whether it holds the summary that the Trainer writes when it has ended.
        trouble: why it cannot be read; None as well while it may only be half written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.curves = Curves()
        self.step = 0
        self.total_steps: int | None = None
        self.done = False
        self.trouble: str | None = None
        self._stamp = Stamp(path)
        self._retry = False
        self._taken = 0
        self._newest: Any = None

    def poll(self) -> bool:
        """Read it if it is another one; a part of it, where it is being replaced, is tried again at the next poll."""
        try:
            again = self._retry
            changed = self._stamp.changed()
            if self._stamp.missing or not (changed or again):
                return False
            data = read_whole(self.path, MOST_JSON)
        except FileNotFoundError:  # replaced between the two looks
            return False
        except OSError as error:
            return self._fail(error.strerror or str(error))
        if data is None:
            return self._fail(f"is larger than {MOST_JSON >> 20} MiB")
        try:
            raw = json.loads(data, parse_constant=_not_finite)
        except (ValueError, RecursionError):
            if again and not changed:
                return self._fail("is no JSON, or was cut short")
            self._retry = True
            return False
        self._retry, self.trouble = False, None
        return self._take(raw)

    def turn_to(self, path: Path) -> None:
        """Go on with another file: that of a newer checkpoint, say, which begins as the one before."""
        self.path, self._stamp, self._retry = path, Stamp(path), False

    def _fail(self, why: str) -> bool:
        before, self.trouble = self.trouble, one_line(f"{self.path.name} {why}")
        self._retry = False
        return before != self.trouble

    def _take(self, raw: Any) -> bool:
        if not isinstance(raw, dict):
            return self._fail("is no trainer's state")
        state = cast("dict[str, Any]", raw)
        history = state.get("log_history")
        entries = cast("list[Any]", history) if isinstance(history, list) else []
        known = self._taken
        if known and (len(entries) < known or entries[known - 1] != self._newest):  # another run's
            self.curves, known, self.done, self.step = Curves(), 0, False, 0
        for entry in entries[known:]:
            self._entry(entry)
        self._taken, self._newest = len(entries), entries[-1] if entries else None
        self.step = _step(state.get("global_step")) or self.step
        self.total_steps = _step(state.get("max_steps")) or None
        self.curves.flush()
        return True

    def _entry(self, entry: Any) -> None:
        if not isinstance(entry, dict):
            return
        values = cast("dict[str, Any]", entry)
        step = _step(values.get("step"))
        if step is None:
            return
        self.done = "train_runtime" in values or (self.done and "loss" not in values)
        self.step = max(self.step, step)
        for name, value in values.items():
            if name not in _NO_METRICS and _is_number(value):
                self.curves.add(name, step, _finite(value))


class LogSource:
    """``trainer_log.jsonl`` of LLaMA-Factory: one line a logging step.

    Attributes:
        memory: bytes; from ``vram_allocated`` and ``vram_reserved``, which it writes in GiB.
        pace: from ``elapsed_time``, the newest of which belongs to the moment of the file's last change.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.curves = Curves()
        self.memory = Curves()
        self.pace = Pace()
        self.step = 0
        self.total_steps: int | None = None
        self.bad_lines = 0
        self._follower = LineFollower(path, first=MOST_JSON)
        self._restarts = 0

    def poll(self) -> bool:
        """Read the lines that are new.

        Raises:
            OSError: it cannot be read.
        """
        times: list[tuple[float, int]] = []
        changed = False
        for lines in self._follower.read():
            if self._follower.restarts != self._restarts:
                self._restarts = self._follower.restarts
                self.curves, self.memory, self.pace, self.step, times = Curves(), Curves(), Pace(), 0, []
            for line in lines:
                if line.strip():
                    self._line(line, times)
            changed = True
        if times:
            begin = self.path.stat().st_mtime - times[-1][0]
            for elapsed, step in times:
                self.pace.add(begin + elapsed, step)
        self.curves.flush()
        self.memory.flush()
        return changed

    def _line(self, line: bytes, times: list[tuple[float, int]]) -> None:
        try:
            raw = json.loads(line, parse_constant=_not_finite)
        except (ValueError, RecursionError):
            self.bad_lines += 1
            return
        values = cast("dict[str, Any]", raw) if isinstance(raw, dict) else {}
        step = _step(values.get("current_steps"))
        if step is None:
            self.bad_lines += 1
            return
        self.step = step
        self.total_steps = _step(values.get("total_steps")) or self.total_steps
        if (elapsed := _seconds(values.get("elapsed_time"))) is not None:
            times.append((elapsed, step))
        for name, value in values.items():
            if not _is_number(value) or name in _NO_METRICS:
                continue
            finite = _finite(value)
            if name in _MEMORY:
                self.memory.add(_MEMORY[name], step, None if finite is None else finite * _GIB)
            else:
                self.curves.add(_RENAMED.get(name, name), step, finite)


class EventsSource:
    """TensorBoard's event files of one or several folders, taken as one run.

    Several files are one run begun again: of a tag that two of them hold the newer one's values count from its first
    step on. transformers' names are turned back (``train/loss`` is ``loss``, ``eval/loss`` is ``eval_loss``).
    """

    def __init__(self) -> None:
        self.curves = Curves()
        self.pace = Pace()
        self.step = 0
        self.files: dict[Path, EventFile] = {}
        self.trouble: str | None = None
        self._owners: dict[str, tuple[str, Path]] = {}
        self._names: dict[str, str] = {}
        self._restarts = 0

    def add(self, path: Path) -> None:
        """One more file."""
        self.files[path] = EventFile(path)

    @property
    def bad_records(self) -> int:
        """Of all files."""
        return sum(file.bad_records for file in list(self.files.values()))

    def poll(self) -> bool:
        """Read what is new, a portion of each file."""
        changed = False
        for path in sorted(self.files, key=_age):
            file = self.files[path]
            try:
                scalars = file.read()
            except OSError as error:
                self.trouble = one_line(f"{path.name} {error.strerror or error}")
                continue
            if file.restarts:  # what was read of it is no longer so, and others may have come after it
                self._forget()
                return True
            changed |= bool(scalars)
            for scalar in scalars:
                self._take(scalar, _age(path))
        self.curves.flush()
        return changed

    def _forget(self) -> None:
        self.curves, self.pace, self.step = Curves(), Pace(), 0
        self.files = {path: EventFile(path) for path in self.files}
        self._owners.clear()
        self._names.clear()

    def _take(self, scalar: Scalar, age: tuple[str, Path]) -> None:
        owner = self._owners.setdefault(scalar.tag, age)
        if age < owner or not -_MOST_STEP <= scalar.step <= _MOST_STEP:
            return
        self._owners[scalar.tag] = age
        self.curves.add(self._name(scalar.tag), scalar.step, _finite(scalar.value))
        if scalar.step > self.step or len(self._owners) == 1:
            self.step = scalar.step
            if isfinite(scalar.time):
                self.pace.add(scalar.time, scalar.step)

    def _name(self, tag: str) -> str:
        if tag not in self._names:
            name = plain_name(tag)
            self._names[tag] = tag if name in self._names.values() else name
        return self._names[tag]


def plain_name(tag: str) -> str:
    """A TensorBoard tag as transformers' Trainer calls the metric in its other files."""
    prefix, slash, rest = tag.partition("/")
    if slash and rest and prefix == "train":
        return rest
    return f"{prefix}_{rest}" if slash and rest and prefix in ("eval", "test") else tag


def _age(path: Path) -> tuple[str, Path]:
    """Event files in the order of their beginning: ``events.out.tfevents.<Unix seconds>.<host>…``."""
    seconds = path.name.removeprefix("events.out.tfevents.").partition(".")[0]
    return (seconds.zfill(20) if seconds.isdigit() else "0", path)


def _not_finite(_: str) -> float:
    """``NaN``, ``Infinity``: not JSON, and yet what Python's json writes."""
    return nan


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: float) -> float | None:
    """None for what is not finite, integers beyond all floats included."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if isfinite(number) else None


def _step(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_MOST_STEP <= value <= _MOST_STEP:
        return None
    return int(value)


def _seconds(text: Any) -> float | None:
    """``1 day, 2:03:04`` as Python writes a ``timedelta``."""
    found = _TIMES.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
