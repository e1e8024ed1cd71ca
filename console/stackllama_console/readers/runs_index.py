"""All runs of a home as rows, children beneath their pipeline; a poll of 500 costs some milliseconds."""

import re
import time
from collections.abc import Callable

from msgspec import structs

from stackllama_engine.contract.chat_target import checkpoint_names
from stackllama_engine.contract.children import CHILDREN, child_id, known_parents
from stackllama_engine.contract.errors import DamagedError
from stackllama_engine.contract.history import History, fold
from stackllama_engine.contract.labels import LABELS_FILE, Labels, read_labels
from stackllama_engine.contract.run_dir import RUN_ID, Home, RunDir, State
from stackllama_engine.contract.stages import Stage

from ..readings import Reading, read_launch, read_result, recent_events, recent_history
from ..sanitise import one_line
from .file_stamp import Stamp
from .recipe_model import recipe_model
from .run_row import Row
from .run_state import StateWatch
from .run_trend import Trend
from .waiting import WaitWatch

_MADE_BY = re.compile(rf"/runs/({RUN_ID.pattern})/(?:adapter|merged|checkpoints)(?:/|$)")
_RECENT_BYTES = 32 * 1024  # of events, which nearly always hold the newest metrics
_ORDER = {child.suffix: number for number, child in enumerate(CHILDREN)}


class RunsIndex:
    """Follower of a home.

    Attributes:
        rows: newest run first, the children of a pipeline beneath it in their order, forks beneath the run that they
            continued from; replaced by `poll`.
        error: why the home cannot be read.
    """

    def __init__(self, home: Home, clock: Callable[[], float] = time.monotonic) -> None:
        self.home = home
        self.rows: list[Row] = []
        self.error: str | None = None
        self._clock = clock
        self._folder = Stamp(home.runs_dir)
        self._watched: dict[str, _Watched] = {}

    def poll(self) -> bool:
        """Read what may have changed; return whether any row did."""
        before = self.rows, self.error
        try:
            changed = self._find_runs()
            self.error = None
        except OSError as error:
            self.error = one_line(f"{self.home.runs_dir} cannot be read: {error.strerror}.")
            return before[1] != self.error
        for watched in self._watched.values():
            changed |= watched.poll()
        if changed:
            self.rows = self._tree()
        return before != (self.rows, self.error)

    def _find_runs(self) -> bool:
        """Find runs that were added or removed; return whether there were any."""
        if not self._folder.changed() and not any(watched.gone for watched in self._watched.values()):
            return False
        present = {run.id: run for run in self.home.unsorted_runs()}
        gone = self._watched.keys() - present.keys()
        new = present.keys() - self._watched.keys()
        for name in gone:
            del self._watched[name]
        for name in new:
            self._watched[name] = _Watched(present[name], self._clock)
        return bool(gone or new)

    def _tree(self) -> list[Row]:
        watches = {name: watched for name, watched in self._watched.items() if not watched.gone}
        pipelines = {name for name, watched in watches.items() if watched.row.stage is Stage.PIPELINE}
        beneath: dict[str, list[tuple[float, Row]]] = {name: [] for name in watches}
        top: list[Row] = []
        for name, watched in watches.items():
            place = next(filter(None, (_place(name, parent, pipelines) for parent in watched.parents)), None)
            if place is not None:
                number, parent = place
                beneath[parent].append((number, watched.row))
            elif watched.origin in watches:
                beneath[watched.origin].append((watched.row.created, watched.row))
            else:
                top.append(watched.row)
        rows: dict[str, Row] = {}

        def add(row: Row, root: str | None) -> None:
            """Add a row and what is beneath it."""
            if row.id not in rows:
                rows[row.id] = structs.replace(row, depth=1, pipeline=root) if root else row
                for _, child in sorted(beneath[row.id], key=lambda pair: pair[0]):
                    add(child, root or row.id)

        # last what no other way leads to: names that were used again can make two runs each other's fork
        for row in [*sorted(top, key=_by_age), *sorted((watched.row for watched in watches.values()), key=_by_age)]:
            add(row, None)
        return list(rows.values())


class _Watched:
    """One run and what was read of it. A run that has ended costs one ``stat`` per poll."""

    def __init__(self, run: RunDir, clock: Callable[[], float]) -> None:
        self.run = run
        self.row = Row(id=one_line(run.id), path=run.path)
        self.parents: list[str] = []
        self.origin = ""
        """The run that a fork continued from."""
        self.gone = False
        self._state = StateWatch(run, clock)
        self._history = History()
        self._trend = Trend()
        self._labels_file = Stamp(run.path / LABELS_FILE)
        self._labels = Labels()
        self._labels_error = ""
        self._wait = WaitWatch(run)
        self._events: Stamp | None = None
        self._attempt = -1
        self._recipe = Stamp(run.recipe_file)
        self._model = ""
        self._launch = Stamp(run.path / "launch.json")
        self._launch_error = ""
        self._error: str | None = None

    def poll(self) -> bool:
        """Read what is new; return whether its row or its place in the list changed."""
        changed = self._state.poll()
        state = self._state.state
        self.gone = self._state.deleted
        if state is None:
            return self._set(self._damaged_row()) or self.gone
        changed |= self._read_labels()
        if not changed and state.has_ended and self.row.error is None and self.row.phase == state.phase:
            return self.gone
        before = self.parents, self.origin
        self._error = None
        try:
            metric = self._read(state)
        except OSError as error:
            metric, self._error = self.row.metric, one_line(str(error))
        row = self._row(state, metric, self._without_folder(self._state.error or self._error))
        return self._set(row) or before != (self.parents, self.origin) or self.gone

    def _read(self, state: State) -> tuple[str, float | None] | None:
        """Read its files besides the state; return the metric of its row.

        Raises:
            UsageError: one of them is damaged.
            OSError: one of them cannot be read.
        """
        if self._launch.changed():
            self.parents = known_parents(self.run)
            launch, self._launch_error = read_launch(self.run)
            self.origin = launch.forked_from.run if launch and launch.forked_from else ""
        if self._recipe.changed():
            self._model = "" if self._recipe.missing else _short(recipe_model(self.run.recipe_file))
        if self._events is None or self._attempt != state.attempt:
            self._attempt = state.attempt
            self._events = Stamp(self.run.attempt_dir(state.attempt) / "events.jsonl")
        if self._events.changed():
            self._history, self._trend = History(), Trend()
            for events in recent_events(self.run, _RECENT_BYTES):
                fold(events, self._history)
                self._trend.add(events)
            if not self._history.last:
                self._history = recent_history(self.run)
        result, error = read_result(self.run) if state.has_ended else ({}, "")
        self._error = one_line(self._launch_error or error or self._labels_error) or None
        return Reading(id=self.run.id, stage=state.stage, state=state, history=self._history, result=result).last_metric

    def _read_labels(self) -> bool:
        """Read what a person says of it; return whether that changed."""
        before = self._labels, self._labels_error
        try:
            if self._labels_file.changed():
                self._labels, self._labels_error = read_labels(self.run), ""
        except (DamagedError, OSError) as error:
            self._labels, self._labels_error = Labels(), str(error)
        return before != (self._labels, self._labels_error)

    def _without_folder(self, error: str | None) -> str | None:
        """Remove the run's directory, which the row's name says."""
        return error.replace(f"{one_line(str(self.run.path))}/", "") if error else error

    def _damaged_row(self) -> Row:
        from stackllama_engine.launch.repair import stage_of  # needed for few runs, and long to import

        return Row(
            id=self.row.id,
            path=self.run.path,
            phase="damaged",
            stage=stage_of(self.run),
            created=self.run.touched(),
            error=self._without_folder(self._state.error),
        )

    def _row(self, state: State, metric: tuple[str, float | None] | None, error: str | None) -> Row:
        history = self._history
        at = "" if state.phase == "finished" or not history.at else one_line(history.at)
        at = state.waiting or at
        loading = self._wait.text(state, history)
        return Row(
            id=self.row.id,
            path=self.run.path,
            stage=state.stage,
            phase=state.phase,
            step=history.step,
            total_steps=history.total_steps,
            model=self._model,
            created=state.created,
            started=state.started,
            ended=state.ended,
            metric=None if loading else metric,
            at=at.removeprefix(f"{self.row.id}-"),
            loading=loading,
            attempt=state.attempt,
            exit_code=state.exit_code,
            saved=bool(checkpoint_names(self.run)),
            cause=state.cause,
            findings=len(state.findings),
            error=error,
            elsewhere=self._state.elsewhere,
            values={one_line(name): value for name, value in history.last.items()},
            seconds_left=self._trend.seconds_left(history.total_steps) if state.phase == "running" else None,
            trend=self._trend.points(state.stage),
            title=one_line(self._labels.title),
            tags=tuple(map(one_line, self._labels.tags)),
            note=one_line(self._labels.note),
        )

    def _set(self, row: Row) -> bool:
        changed, self.row = row != self.row, row
        return changed


def _short(model: str) -> str:
    """Return the id of the run that made a model, wherever its home was then; other models unchanged."""
    match = _MADE_BY.search(model)
    return match[1] if match else one_line(model)


def _by_age(row: Row) -> tuple[float, str]:
    return -row.created, row.id


def _place(name: str, parent: str, pipelines: set[str]) -> tuple[int, str] | None:
    """Return (number among the children, pipeline) where the parent is the pipeline of this run, else None."""
    if parent not in pipelines:
        return None
    for suffix, number in _ORDER.items():
        if name == child_id(parent, suffix):
            return number, parent
    return None
