"""One run directory: its state, and the events of all its attempts as history and series."""

import time
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from stackllama_engine.contract.events import EventReader, Record
from stackllama_engine.contract.history import History
from stackllama_engine.contract.run_dir import HEALTH_FILE, RunDir, State
from stackllama_engine.contract.stages import Stage

from ..readings import checkpoint_steps
from ..sanitise import one_line
from .eta import Eta, Pace, estimate
from .file_stamp import Stamp
from .metric_columns import Columns
from .run_state import StateWatch
from .series import Series

_AT_WORK = ("starting", "running", "stalled")
_READ_ANEW = 3  # times in one poll; a file that is replaced more often is read on at the next one


class Attempt(Struct, kw_only=True):
    """One attempt: when its first event was written, and the first and newest step that it did itself."""

    number: int
    started: float | None = None
    first_step: int | None = None
    last_step: int | None = None


class RunReader:
    """Implements `Reader` for our own runs.

    Attributes:
        run: the run directory.
        title: its id.
        history: the fold over all events, texts sanitised; a copy that `poll` replaces.
        attempts: first to newest; those whose folder exists.
        checkpoints: steps of the complete checkpoints, ascending.
        trouble: why the directory cannot be read now; what was read before stays.
    """

    def __init__(self, run: RunDir, clock: Callable[[], float] = time.monotonic) -> None:
        self.run = run
        self.title = one_line(run.id)
        self.checkpoints: list[int] = []
        self._watch = StateWatch(run, clock)
        self._folder = Stamp(run.attempts)
        self._checkpoints = Stamp(run.checkpoints)
        self._unreadable: str | None = None
        self._forget()

    # what it says

    @property
    def state(self) -> State | None:
        """The reconciled state (at most a second old); None until it could be read."""
        return self._watch.state

    @property
    def stage(self) -> Stage | None:
        """None until the state could be read."""
        return self.state.stage if self.state else None

    @property
    def phase(self) -> str:
        """The state's phase; ``unknown`` until it could be read."""
        return self.state.phase if self.state else "unknown"

    @property
    def trouble(self) -> str | None:
        """Why it cannot be read now, in a sentence; None when all is well."""
        return self._watch.trouble or self._unreadable

    @property
    def elsewhere(self) -> str:
        """On which other machine it is, in words; empty where it is on this one."""
        return self._watch.elsewhere

    @property
    def series(self) -> dict[str, Series]:
        """Metric name → values over steps. After a resume the newer attempt's values stand."""
        return self._metrics.series

    @property
    def memory(self) -> dict[str, Series]:
        """Bytes by name, over the step that was done when they were measured."""
        return self._memory.series

    @property
    def bad_lines(self) -> int:
        """Lines of all attempts that are no records."""
        return sum(reader.bad_lines for reader in [*self._readers.values(), *self._journals.values()])

    @property
    def remarks(self) -> list[str]:
        """The newest health messages, newest last."""
        left_out = self._metrics.left_out + self._memory.left_out
        notice = [f"{left_out} values are not shown: the run has too many metrics."] if left_out else []
        return [*self.history.health, *notice]

    @property
    def timings(self) -> dict[str, float]:
        """Seconds that the newest measured step spent in each of its phases (``time/…``); empty where none are."""
        return {
            name.removeprefix("time/"): value
            for name, value in self.history.last.items()
            if name.startswith("time/") and value is not None
        }

    @property
    def started(self) -> float | None:
        """When the newest attempt began, Unix seconds."""
        written = self.attempts[-1].started if self.attempts else None
        return (self.state.started if self.state else None) or written

    @property
    def first_step(self) -> int | None:
        """The first step that the newest attempt did itself; None before it."""
        return self.attempts[-1].first_step if self.attempts else None

    def eta(self, now: float) -> Eta | None:
        """Time left from the newest attempt's own steps; None unless it is at work. See `eta`."""
        state = self.state
        if state is None or state.phase not in _AT_WORK or state.stage is Stage.PIPELINE:
            return None
        if not self.attempts or self.attempts[-1].number != state.attempt:
            return None
        return estimate(self._pace.points.copy(), self.history.total_steps, now)

    # reading it

    def poll(self) -> bool:
        """Read what is new; whether anything changed."""
        changed = self._watch.poll()  # first, so that the last events are there when it has ended
        before = self._unreadable
        try:
            self._unreadable = None
            changed |= self._find_attempts()
            changed |= self._read()
            changed |= self._find_checkpoints()
        except OSError as error:
            self._cannot_read(error)
        return changed or before != self._unreadable

    def _forget(self) -> None:
        """Begin anew, as if nothing had been read."""
        self.history = History()
        self.attempts: list[Attempt] = []
        self._fold = History()
        self._metrics = Columns()
        self._memory = Columns()
        self._pace = Pace()
        self._readers: dict[int, EventReader] = {}
        self._journals: dict[int, EventReader] = {}
        """What supervisors noticed, by attempt."""

    def _find_attempts(self) -> bool:
        expected = self.state.attempt if self.state else 0
        if not self._folder.changed() and (not expected or expected in self._readers):
            return False
        numbers = sorted(int(path.name) for path in self.run.attempt_dirs() if path.name.isascii())
        new = [number for number in numbers if number not in self._readers]
        if new and self._readers and new[0] < max(self._readers):
            self._forget()  # an older attempt turned up: only in their order do events make sense
            new = numbers
        self._open(new)
        if new:
            self.attempts = [*self.attempts, *(Attempt(number=number) for number in new)]
            self._pace = Pace()
        return bool(new)

    def _open(self, numbers: list[int]) -> None:
        for number in numbers:
            folder = self.run.attempt_dir(number)
            self._readers[number] = EventReader(folder / "events.jsonl")
            self._journals[number] = EventReader(folder / HEALTH_FILE)

    def _read(self) -> bool:
        changed = False
        for _ in range(_READ_ANEW):
            news, whole = self._read_on()
            changed |= news
            if whole:
                break
            changed = True
            numbers = list(self._readers)
            self._forget()
            self._open(numbers)
            self.attempts = [Attempt(number=number) for number in numbers]
        return changed

    def _read_on(self) -> tuple[bool, bool]:
        """Whether there was anything new; whether it goes on from what is known, no file having begun anew."""
        changed = False
        for attempt in self.attempts:
            for read in (self._read_events, self._read_journal):
                try:
                    news, whole = read(attempt)
                except OSError as error:  # something else in a file's place: the others can be read
                    self._cannot_read(error)
                    continue
                changed |= news
                if not whole:
                    return True, False
        return changed, True

    def _read_events(self, attempt: Attempt) -> tuple[bool, bool]:
        """As `_read_on`, of one file."""
        reader = self._readers[attempt.number]
        changed, bad_lines = False, reader.bad_lines
        for batch in reader.read_batches():
            if reader.restarts:
                break
            self._take(attempt, batch)
            changed = True
        return changed or bad_lines != reader.bad_lines, not reader.restarts

    def _read_journal(self, attempt: Attempt) -> tuple[bool, bool]:
        """As `_read_on`, of one file."""
        remarks = list(self._journals[attempt.number].read())
        for remark in remarks:
            self._fold.remark(remark)
        if remarks:
            self.history = self._snapshot()
        return bool(remarks), True

    def _cannot_read(self, error: OSError) -> None:
        self._unreadable = one_line(f"{error.filename or self.run.path} cannot be read: {error.strerror}.")

    def _take(self, attempt: Attempt, batch: list[Record]) -> None:
        if not batch:
            return
        if attempt.started is None:
            attempt.started = batch[0].time
        history = self._fold
        for event in batch:
            if event.step is not None:
                history.step = event.step
            if event.total_steps is not None:
                history.total_steps = event.total_steps
            match event.kind:
                case "phase":
                    history.enter(event)
                case "metrics" if metrics := event.metrics:
                    self._metrics.take(history.step, metrics)
                case "memory" if metrics := event.metrics:
                    self._memory.take(history.step, metrics)
                    history.take_phase_memory(event)
                case "progress":
                    self._progress(attempt, event)
                case _:
                    history.apply(event)
        history.updated = batch[-1].time
        self._metrics.flush()
        self._memory.flush()
        self.history = self._snapshot()

    def _progress(self, attempt: Attempt, event: Record) -> None:
        step = event.step
        if step is None:
            return
        if attempt.first_step is None:
            attempt.first_step = step
        attempt.last_step = step
        if attempt is self.attempts[-1]:
            self._pace.add(event.time, step)

    def _snapshot(self) -> History:
        """A copy that the next poll does not touch, with everything in it sanitised."""
        fold, code = self._fold, self._fold.exit_code
        return msgspec.structs.replace(
            fold,
            phase=_text(fold.phase),
            reason=_text(fold.reason),
            cause=_text(fold.cause),
            exit_code=code if isinstance(code, int) else None,
            first=self._metrics.first.copy(),
            last=self._metrics.last.copy(),
            memory=self._memory.last.copy(),
            memory_by_phase={one_line(name): found.copy() for name, found in fold.memory_by_phase.items()},
            health=[one_line(message) for message in fold.health],
        )

    def _find_checkpoints(self) -> bool:
        if not self._checkpoints.changed():
            return False
        before = self.checkpoints
        try:
            self.checkpoints = checkpoint_steps(self.run)
        except FileNotFoundError:  # deleted between two looks
            self.checkpoints = []
        return before != self.checkpoints


def _text(value: Any) -> str | None:
    return None if value is None else one_line(str(value))
