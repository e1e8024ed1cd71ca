"""One run directory: its state, and the events of all its attempts folded into history and series."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from stackllama_engine.contract.events import EventReader, Record
from stackllama_engine.contract.health import Finding
from stackllama_engine.contract.history import History
from stackllama_engine.contract.run_dir import HEALTH_FILE, RunDir, State
from stackllama_engine.contract.stages import Stage

from ..sanitise import one_line
from .eta import IDLE, KEPT, Eta, Pace, estimate
from .file_stamp import Stamp
from .gpu_series import GpuSeries
from .metric_columns import Columns
from .run_state import StateWatch
from .series import Series
from .timeline import RunEvent, Timeline

_RUNNING = ("starting", "running", "stalled")
_PACED = 4 * KEPT  # records of progress per batch that the pace is told from: it keeps the newest
_REREADS = 3  # per poll; a file that is replaced more often is read on at the next one


class RunReader:
    """Reader of a run of our own. Implements `Reader`.

    Attributes:
        run: the run directory.
        title: its id.
        history: the fold over all events, texts sanitised; a copy that `poll` replaces.
        attempts: numbers of those whose folder exists, ascending.
        error: why the directory cannot be read now; what was read before stays.
    """

    def __init__(self, run: RunDir, clock: Callable[[], float] = time.monotonic) -> None:
        self.run = run
        self.title = one_line(run.id)
        self._watch = StateWatch(run, clock)
        self._folder = Stamp(run.attempts)
        self._unreadable: str | None = None
        self._forget()

    @property
    def state(self) -> State | None:
        """The reconciled state, at most a second old; None until it could be read."""
        return self._watch.state

    @property
    def stage(self) -> Stage | None:
        """The run's stage; None until the state could be read."""
        return self.state.stage if self.state else None

    @property
    def phase(self) -> str:
        """The state's phase; ``unknown`` until it could be read."""
        return self.state.phase if self.state else "unknown"

    @property
    def error(self) -> str | None:
        """The reason, in a sentence, why the run cannot be read now; None when it can."""
        return self._watch.error or self._unreadable

    @property
    def elsewhere(self) -> str:
        """The other machine that the run is on, in words; empty for a run on this one."""
        return self._watch.elsewhere

    @property
    def series(self) -> dict[str, Series]:
        """Metric name → values over steps, GPUs' too. Steps that a resumed attempt did again have its values."""
        return self._metrics.series | self._gpus.series

    @property
    def memory(self) -> dict[str, Series]:
        """Bytes by name, over the step that was done when they were measured."""
        return self._memory.series

    @property
    def times(self) -> Series:
        """Seconds since the run's first metrics, over the step that they are of."""
        return self._times

    @property
    def bad_lines(self) -> int:
        """Number of lines, over all attempts, that are not records."""
        readers = [*self._readers.values(), *self._journals.values(), *self._gpus.readers]
        return sum(reader.bad_lines for reader in readers)

    @property
    def notices(self) -> list[str]:
        """The newest health messages, newest last."""
        dropped = self._metrics.dropped + self._memory.dropped
        own = [f"{dropped} values are not shown: the run has too many metrics."] if dropped else []
        return [*self.history.health, *own]

    @property
    def events(self) -> Sequence[RunEvent]:
        """What happened to the run, to be shown among the lines of its log."""
        return self._timeline.events

    def eta(self, now: float) -> Eta | None:
        """Estimate the time left from the newest attempt's own steps; None unless it is running. See `eta`."""
        state = self.state
        if state is None or state.phase not in _RUNNING or state.stage is Stage.PIPELINE:
            return None
        if not self.attempts or self.attempts[-1] != state.attempt:
            return None
        return estimate(self._pace.points.copy(), self.history.total_steps, self._pace.clock(now))

    def poll(self) -> bool:
        """Read what is new; return whether anything changed."""
        changed = self._watch.poll()  # first, so that the last events are there when it has ended
        before = self._unreadable
        try:
            self._unreadable = None
            changed |= self._find_attempts()
            changed |= self._read()
        except OSError as error:
            self._cannot_read(error)
        return changed or before != self._unreadable

    def _forget(self) -> None:
        """Start over, as if nothing had been read."""
        self.history = History()
        self.attempts: list[int] = []
        self._history = History()
        self._metrics = Columns()
        self._memory = Columns()
        self._gpus = GpuSeries()
        self._times = Series("time")
        self._began: float | None = None
        self._pace = Pace()
        self._timeline = Timeline()
        self._readers: dict[int, EventReader] = {}
        self._journals: dict[int, EventReader] = {}
        """The supervisors' health files, by attempt."""

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
            self.attempts = [*self.attempts, *new]
            self._pace = Pace()
        return bool(new)

    def _open(self, numbers: list[int]) -> None:
        for number in numbers:
            folder = self.run.attempt_dir(number)
            self._readers[number] = EventReader(folder / "events.jsonl")
            self._journals[number] = EventReader(folder / HEALTH_FILE)
            self._gpus.open(number, folder)

    def _read(self) -> bool:
        changed = False
        for _ in range(_REREADS):
            is_new, is_whole = self._read_on()
            changed |= is_new
            if is_whole:
                break
            changed = True
            numbers = list(self._readers)
            self._forget()
            self._open(numbers)
            self.attempts = numbers
        return changed

    def _read_on(self) -> tuple[bool, bool]:
        """Read on in every file.

        Returns:
            Whether anything was new; whether it continues what was read before, no file having been replaced.
        """
        changed = False
        for attempt in self.attempts:
            for read in (self._read_events, self._read_journal, self._gpus.read):
                try:
                    is_new, is_whole = read(attempt)
                except OSError as error:  # something else in a file's place: the others can be read
                    self._cannot_read(error)
                    continue
                changed |= is_new
                if not is_whole:
                    return True, False
        return changed, True

    def _read_events(self, attempt: int) -> tuple[bool, bool]:
        """Read on in an attempt's events; returns as `_read_on`."""
        reader = self._readers[attempt]
        changed, bad_lines = False, reader.bad_lines
        try:
            for batch in reader.read_batches():
                if reader.restarts:
                    break
                self._apply(batch, attempt)
                changed = True
        finally:
            if changed:
                self._timeline.publish()
                self.history = self._snapshot()
        return changed or bad_lines != reader.bad_lines, not reader.restarts

    def _read_journal(self, attempt: int) -> tuple[bool, bool]:
        """Read on in an attempt's health file; returns as `_read_on`."""
        reader = self._journals[attempt]
        notices = list(reader.read())
        if reader.restarts:
            return True, False
        for notice in notices:
            self._history.add_notice(notice)
            self._timeline.add(notice, attempt)
        if notices:
            self._timeline.publish()
            self.history = self._snapshot()
        return bool(notices), True

    def _cannot_read(self, error: OSError) -> None:
        self._unreadable = one_line(f"{error.filename or self.run.path} cannot be read: {error.strerror}.")

    def _apply(self, batch: list[Record], attempt: int) -> None:
        """Fold a batch of an attempt's events: values of metrics and memory as columns, the rest as `History` does.

        Written out for the kinds that a million events are of; `History.apply_facts` is for the others.
        """
        if not batch:
            return
        history, step = self._history, self._history.step
        phases: list[Record] = []
        paced: list[Record] = []  # progress, and phases that stop or start the clock of the pace
        is_idle = self._pace.is_idle
        steps: list[float] = []
        times: list[float] = []
        for event in batch:
            if event.step is not None:
                step = event.step
            kind = event.kind
            if kind in ("phase", "activity"):
                phases.append(event)
                if kind == "phase" and (is_idle or event.phase in IDLE):
                    paced.append(event)
                    is_idle = event.phase in IDLE
            elif kind == "progress":
                paced.append(event)
            elif event.metrics:
                self._apply_values(event, event.metrics, step, attempt)
                if kind == "metrics" and (not steps or steps[-1] != step):
                    steps.append(step)
                    times.append(event.time)
            elif kind != "samples":
                history.apply_facts(event)
                self._timeline.add(event, attempt)
        self._apply_phases(phases, attempt)
        self._apply_progress(paced, attempt)
        history.step, history.updated = step, batch[-1].time
        self._metrics.flush()
        self._memory.flush()
        self._add_times(steps, times)

    def _apply_phases(self, phases: list[Record], attempt: int) -> None:
        """Fold phases and activities: a phase forgets what was done before it, so that the newest decides."""
        begins = [index for index, event in enumerate(phases) if event.kind == "phase"]
        for event in phases[begins[-1] if begins else 0 :]:
            self._history.apply_facts(event)
        if begins:
            self._timeline.add_phases([phases[index] for index in begins], attempt)

    def _apply_values(self, event: Record, values: dict[str, float | None], step: int, attempt: int) -> None:
        if event.kind == "metrics":
            if self._metrics.add(step, values):
                self._timeline.add_evaluation(event.time, step, values, attempt)
        elif event.kind == "memory":
            self._memory.add(step, values)
            self._history.apply_facts(event)

    def _apply_progress(self, paced: list[Record], attempt: int) -> None:
        totals = (event.total_steps for event in reversed(paced) if event.total_steps is not None)
        self._history.total_steps = next(totals, self._history.total_steps)
        if attempt == self.attempts[-1]:
            first = len(paced) - _PACED
            for index, event in enumerate(paced):
                if event.kind == "phase":
                    self._pace.enter(event.time, event.phase)
                elif index >= first and event.step is not None:
                    self._pace.add(event.time, event.step)

    def _add_times(self, steps: list[float], times: list[float]) -> None:
        if steps:
            began = self._began = times[0] if self._began is None else self._began
            self._times.extend(steps, [time - began for time in times])

    def _snapshot(self) -> History:
        """Copy the history for readers: the next poll does not touch it, and everything in it is sanitised."""
        fold, code = self._history, self._history.exit_code
        return msgspec.structs.replace(
            fold,
            phase=_text(fold.phase),
            reason=_text(fold.reason),
            doing=_text(fold.doing),
            cause=_text(fold.cause),
            exit_code=code if isinstance(code, int) else None,
            first=self._metrics.first.copy(),
            last=self._metrics.last.copy(),
            memory=self._memory.last.copy(),
            memory_by_phase={one_line(phase): peaks.copy() for phase, peaks in fold.memory_by_phase.items()},
            findings={rule: _clean(finding) for rule, finding in fold.findings.items()},
            notices=[notice._replace(text=one_line(notice.text)) for notice in fold.notices],
        )


def _clean(finding: Finding) -> Finding:
    """Sanitise the texts of a finding: the file may be another program's."""
    return msgspec.structs.replace(
        finding,
        rule=one_line(finding.rule),
        seen=one_line(finding.seen),
        means=one_line(finding.means),
        tries=[{one_line(key): one_line(value) for key, value in one.items()} for one in finding.tries],
    )


def _text(value: Any) -> str | None:
    return None if value is None else one_line(str(value))
