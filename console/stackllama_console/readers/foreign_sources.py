"""Readers for the files of other trainers; each kind is read as it grows into curves of its own."""

import json
import re
from collections import defaultdict
from math import isfinite, nan
from pathlib import Path
from typing import Any, cast

from ..sanitise import one_line
from .eta import Pace
from .event_curves import Added, TagCurve
from .file_stamp import Stamp
from .foreign_files import event_age
from .line_follower import LineFollower
from .metric_columns import NAMES
from .regular_file import read_whole
from .series import Series
from .tensorboard import EventFile, Scalar

MOST_JSON = 64 << 20
"""Bytes of a ``trainer_state.json``; a larger one is not read."""

_MOST_STEP = 1 << 53
_MOST_READS = 8  # of `tensorboard.MOST_BYTES` per poll
_TOO_MANY_NAMES = f"metrics beyond the first {NAMES} names are not shown"
_GIB = 1 << 30
_TIMES = re.compile(r"(?:(\d{1,6}) days?, )?(\d{1,4}):(\d\d):(\d\d)")
_SHORT_TIMES = re.compile(r"(?:(\d{1,6})d ?)?(?:(\d{1,4})h ?)?(?:(\d{1,2})m ?)?(?:(\d{1,2})s)?")
_PROGRESS = re.compile(r"(\d{1,15})/(\d{1,15})")
_NUMBER = re.compile(r"[-+]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})(e[-+]?\d{1,3})?|nan|[-+]?inf(inity)?", re.I)
_STEPS = ("current_steps", "global_step/max_steps", "iteration", "train/global_step", "global_step", "step", "_step")
"""Keys of a line's step, the most reliable first; ms-swift writes ``"7/100"``."""
_NO_METRICS = frozenset(
    {*_STEPS, "total_steps", "max_steps", "percentage", "elapsed_time", "remaining_time", "_runtime", "_timestamp"}
)
_RENAMED = {"lr": "learning_rate"}
_MEMORY = {"vram_allocated": "allocated", "vram_reserved": "reserved", "memory(GiB)": "reserved"}


class Curves:
    """Series by sanitised name. ``series`` is replaced, never changed, when a name comes up for the first time."""

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}
        self.too_many_names = False
        self._pending: dict[str, tuple[list[float], list[float | None]]] = defaultdict(lambda: ([], []))

    def add(self, name: str, step: int, value: float | None) -> None:
        """Add a value; `flush` appends it to its series."""
        steps, values = self._pending[name]
        steps.append(step)
        values.append(value)

    def flush(self) -> bool:
        """Append the values added since to their series; return whether there were any."""
        if not self._pending:
            return False
        series = self.series.copy()
        for name, (steps, values) in self._pending.items():
            clean = one_line(name)
            if clean not in series and len(series) < NAMES:
                series[clean] = Series(clean)
            self.too_many_names |= clean not in series
            if clean in series:
                series[clean].extend(steps, values)
        self._pending.clear()
        if len(series) != len(self.series):
            self.series = series
        return True


class Stepless:
    """Count of rows that hold metrics without a step, such as those of a final prediction."""

    def __init__(self) -> None:
        self.count = 0
        self.example = ""

    def add(self, values: dict[str, Any]) -> None:
        """Count a row if there is a number in it."""
        name = next((name for name, value in values.items() if _is_number(value)), None)
        if name is not None:
            self.count += 1
            self.example = self.example or name


class StateSource:
    """``trainer_state.json`` of transformers' Trainer: written whole at each checkpoint and at the end.

    Attributes:
        step, total_steps: as in the file.
        done: whether it holds the summary that the Trainer writes when it has ended.
        error: why it cannot be read; None as well while it may be half written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.curves = Curves()
        self.step = 0
        self.total_steps: int | None = None
        self.done = False
        self.error: str | None = None
        self._stepless = Stepless()
        self._stamp = Stamp(path)
        self._retry = False
        self._read_entries = 0
        self._newest: Any = None

    def poll(self) -> bool:
        """Read the file if it changed; one that is being replaced is tried again at the next poll."""
        try:
            again = self._retry
            changed = self._stamp.changed()
            if self._stamp.missing or not (changed or again):
                return False
            data = read_whole(self.path, MOST_JSON)
        except FileNotFoundError:  # replaced between the two calls
            return False
        except OSError as error:
            return self._fail(error.strerror or str(error))
        if data is None:
            return self._fail(f"is larger than {MOST_JSON >> 20} MiB")
        try:
            raw = json.loads(data, parse_constant=_not_finite)
        except (ValueError, RecursionError):
            if again and not changed:
                return self._fail("is not JSON, or was truncated")
            self._retry = True
            return False
        self._retry, self.error = False, None
        return self._take(raw)

    @property
    def notes(self) -> list[str]:
        """Sentences on what of it is not shown."""
        return _notes(self.path, self.curves, self._stepless)

    def turn_to(self, path: Path) -> None:
        """Continue with another file, such as that of a newer checkpoint, which begins as the one before."""
        self.path, self._stamp, self._retry = path, Stamp(path), False

    def _fail(self, why: str) -> bool:
        before, self.error = self.error, one_line(f"{self.path.name} {why}")
        self._retry = False
        return before != self.error

    def _take(self, raw: Any) -> bool:
        if not isinstance(raw, dict):
            return self._fail("is not the state of a Trainer")
        state = cast("dict[str, Any]", raw)
        history = state.get("log_history")
        entries = cast("list[Any]", history) if isinstance(history, list) else []
        start = self._read_entries
        if start and (len(entries) < start or entries[start - 1] != self._newest):  # another run's
            self.curves, start, self.done, self.step = Curves(), 0, False, 0
            self._stepless = Stepless()
        for entry in entries[start:]:
            self._entry(entry)
        self._read_entries, self._newest = len(entries), entries[-1] if entries else None
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
            self._stepless.add(values)
            return
        self.done = "train_runtime" in values or (self.done and "loss" not in values)
        self.step = max(self.step, step)
        for name, value in values.items():
            if name not in _NO_METRICS and _is_number(value):
                self.curves.add(name, step, _finite(value))


class LogSource:
    """Log with one line of JSON per logging step.

    ``trainer_log.jsonl`` of LLaMA-Factory, ``logging.jsonl`` of ms-swift, ``wandb-history.jsonl`` of Weights & Biases.

    Attributes:
        memory: bytes; from what they write in GiB.
        pace: from the elapsed times in it; the newest one is that of the file's last change.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.curves = Curves()
        self.memory = Curves()
        self.pace = Pace()
        self.step = 0
        self.total_steps: int | None = None
        self.bad_lines = 0
        self._stepless = Stepless()
        self._follower = LineFollower(path, first=MOST_JSON)
        self._restarts = 0

    @property
    def notes(self) -> list[str]:
        """Sentences on what of it is not shown."""
        notes = _notes(self.path, self.curves, self._stepless)
        if skipped := self._follower.skipped:
            notes.append(f"the first {skipped >> 20} MiB of {one_line(self.path.name)} are not read")
        return notes

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
                self._stepless = Stepless()
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
            raw = None
        if not isinstance(raw, dict):
            self.bad_lines += 1
            return
        values = {name: _number(value) for name, value in cast("dict[str, Any]", raw).items()}
        step, total = _progress(values)
        if step is None:
            self._stepless.add(values)
            return
        self.step = step
        self.total_steps = total or self.total_steps
        elapsed = _seconds(values.get("elapsed_time", values.get("_runtime")))
        if elapsed is not None:
            times.append((elapsed, step))
        for name, value in values.items():
            if not _is_number(value) or name in _NO_METRICS:
                continue
            finite = _finite(value)
            if name in _MEMORY:
                self.memory.add(_MEMORY[name], step, None if finite is None else finite * _GIB)
            else:
                self.curves.add(_RENAMED.get(name, plain_name(name)), step, finite)


class EventsSource:
    """TensorBoard's event files of one or several folders, read as one run; see `event_curves`.

    transformers' names are turned back (``train/loss`` is ``loss``, ``eval/loss`` is ``eval_loss``).
    """

    def __init__(self) -> None:
        self.pace = Pace()
        self.step = 0
        self.files: dict[Path, EventFile] = {}
        self.series: dict[str, Series] = {}
        self.error: str | None = None
        self._tags: dict[str, TagCurve] = {}
        self._too_many_names = False

    def add(self, path: Path) -> None:
        """Add a file."""
        older = any(event_age(other) > event_age(path) for other in self.files)
        self.files[path] = EventFile(path)
        if older and self._tags:
            self._forget()

    @property
    def bad_records(self) -> int:
        """Number of bad records in all files."""
        return sum(file.bad_records for file in list(self.files.values()))

    @property
    def notes(self) -> list[str]:
        """Sentences on what is not shown as the files have it."""
        notes = [_TOO_MANY_NAMES] if self._too_many_names else []
        shared = [curve for curve in list(self._tags.values()) if len(curve.series) > 1]
        if shared:
            writers = max(curve.writers for curve in shared)
            some = one_line(min(curve.name for curve in shared))
            notes.append(f"{writers} programs wrote the same steps: `{some} (2)` is the second one's `{some}`")
        return notes

    def poll(self) -> bool:
        """Read what is new, oldest file first: what continues it is only known when all of it was read."""
        changed, reads = False, _MOST_READS
        self.error = None
        for path in sorted(self.files, key=event_age):
            file = self.files[path]
            while reads:
                try:
                    scalars = file.read()
                except OSError as error:
                    self.error = one_line(f"{path.name} {error.strerror or error}")
                    break
                if file.restarts or any(self._add_scalar(path, scalar) == "again" for scalar in scalars):
                    self._forget()  # what was read is no longer valid
                    return True
                changed |= bool(scalars)
                reads -= 1 if file.behind else 0
                if not file.behind:
                    break
            if not reads:
                break
        self._flush()
        return changed

    def _forget(self) -> None:
        self.pace, self.step, self.series = Pace(), 0, {}
        self.files = {path: EventFile(path) for path in self.files}
        self._tags.clear()

    def _add_scalar(self, path: Path, scalar: Scalar) -> Added:
        curve = self._tags.get(scalar.tag)
        if curve is None and len(self._tags) < NAMES:
            curve = self._tags[scalar.tag] = TagCurve(self._name(scalar.tag))
        self._too_many_names |= curve is None
        if curve is None or not -_MOST_STEP <= scalar.step <= _MOST_STEP:
            return "dropped"
        outcome = curve.add(path, scalar)
        if outcome == "added" and (scalar.step > self.step or len(self._tags) == 1):
            self.step = scalar.step
            if isfinite(scalar.time):
                self.pace.add(scalar.time, scalar.step)
        return outcome

    def _flush(self) -> None:
        flushed = [curve.flush() for curve in self._tags.values()]
        if any(flushed):
            self.series = {name: series for curve in self._tags.values() for name, series in curve.series.items()}

    def _name(self, tag: str) -> str:
        """Return the name of a tag: that of transformers, unless another tag has it."""
        names_in_use = {curve.name for curve in self._tags.values()}
        names = (
            one_line(plain_name(tag)),
            one_line(tag),
            *(f"{one_line(tag)} [{number}]" for number in range(2, NAMES + 2)),
        )
        return next(name for name in names if name not in names_in_use)


def plain_name(tag: str) -> str:
    """Return a TensorBoard tag as transformers' Trainer names the metric in its other files."""
    prefix, slash, rest = tag.partition("/")
    if slash and rest and prefix == "train":
        return rest
    return f"{prefix}_{rest}" if slash and rest and prefix in ("eval", "test") else tag


def _not_finite(_: str) -> float:
    """Return NaN for ``NaN`` and ``Infinity``: not JSON, but written by Python's json."""
    return nan


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: float) -> float | None:
    """Return the number as a float; None for what is not finite, integers beyond all floats included."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if isfinite(number) else None


def _step(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_MOST_STEP <= value <= _MOST_STEP:
        return None
    return int(value)


def _seconds(value: Any) -> float | None:
    """Parse seconds: a number, ``1 day, 2:03:04`` (Python's ``timedelta``) or ``1d 2h 3m 4s`` (ms-swift)."""
    if _is_number(value):
        return _finite(value)
    if not isinstance(value, str):
        return None
    match = _TIMES.fullmatch(value) or _SHORT_TIMES.fullmatch(value)
    if match is None or not value:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _number(value: Any) -> Any:
    """Convert a text that is a number, for trainers that round by formatting; return anything else unchanged."""
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _progress(values: dict[str, Any]) -> tuple[int | None, int | None]:
    """Return step and number of steps of a line."""
    for name in _STEPS:
        value = values.get(name)
        if isinstance(value, str) and (match := _PROGRESS.fullmatch(value)):
            return int(match[1]), int(match[2])
        if (step := _step(value)) is not None:
            return step, _step(values.get("total_steps")) or _step(values.get("max_steps"))
    return None, None


def _notes(path: Path, curves: Curves, stepless: Stepless) -> list[str]:
    notes = [_TOO_MANY_NAMES] if curves.too_many_names else []
    if stepless.count:
        rows = "1 row" if stepless.count == 1 else f"{stepless.count} rows"
        notes.append(f"{rows} of {one_line(path.name)} without a step are not drawn (`{one_line(stepless.example)}` …)")
    return notes
