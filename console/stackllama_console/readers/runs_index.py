"""All runs of a home as rows, pipelines with their children beneath them; 500 of them cost some milliseconds a look."""

import re
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct, structs

from stackllama_engine.contract.children import CHILDREN, child_id, known_parents
from stackllama_engine.contract.history import History
from stackllama_engine.contract.requests import WAITING_FOR_ROOM
from stackllama_engine.contract.run_dir import ENDED, RUN_ID, Home, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.repair import stage_of

from ..readings import Reading, read_launch, read_result, recent_history
from ..sanitise import one_line
from .file_stamp import Stamp
from .recipe_model import recipe_model
from .run_state import StateWatch

_MADE = re.compile(rf"/runs/({RUN_ID.pattern})/(?:adapter|merged|checkpoints)(?:/|$)")
_GLANCE = 32 * 1024  # bytes of events that nearly always hold the newest metrics
_PLACES = {child.suffix: place for place, child in enumerate(CHILDREN)}


class Row(Struct, frozen=True, kw_only=True):
    """One run. Texts are sanitised, times are Unix seconds. Of a damaged run only ``id`` and ``trouble`` say much."""

    id: str
    path: Path
    depth: int = 0
    """1 for a child beneath its pipeline."""
    pipeline: str | None = None
    """Id of the pipeline it stands beneath."""
    stage: Stage | None = None
    phase: str = "unknown"
    """``damaged``: its state cannot be read, and ``trouble`` says why."""
    step: int = 0
    total_steps: int | None = None
    model: str = ""
    """Of a model that a run made, that run's id; of a merge, the run whose adapter it merges."""
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    metric: tuple[str, float | None] | None = None
    """Name and value of the number that says how it went; None as value: NaN or infinite."""
    elsewhere: str = ""
    """On which other machine it is, in words."""
    at: str = ""
    """What it is at: an unfinished run's phase of work, a pipeline's child."""
    attempt: int = 0
    exit_code: int | None = None
    cause: str | None = None
    trouble: str | None = None

    @property
    def waits(self) -> bool:
        """Whether it waits for room on the disk: then that is what to know of it."""
        return self.at.startswith(WAITING_FOR_ROOM) and self.phase not in ENDED

    def age(self, now: float) -> float:
        """Seconds since it was created."""
        return max(0.0, now - self.created)


class RunsIndex:
    """Follows a home.

    Attributes:
        rows: newest run first, the children of a pipeline beneath it in their order; replaced by `poll`.
        trouble: why the home cannot be read.
    """

    def __init__(self, home: Home, clock: Callable[[], float] = time.monotonic) -> None:
        self.home = home
        self.rows: list[Row] = []
        self.trouble: str | None = None
        self._clock = clock
        self._folder = Stamp(home.runs_dir)
        self._watched: dict[str, _Watched] = {}

    def poll(self) -> bool:
        """Look at what may have changed; whether any row did."""
        before = self.rows, self.trouble
        try:
            changed = self._find_runs()
            self.trouble = None
        except OSError as error:
            self.trouble = one_line(f"{self.home.runs_dir} cannot be read: {error.strerror}.")
            return before[1] != self.trouble
        for watched in self._watched.values():
            changed |= watched.poll()
        if changed:
            self.rows = self._tree()
        return before != (self.rows, self.trouble)

    def _find_runs(self) -> bool:
        """Runs that came and went."""
        if not self._folder.changed() and not any(watched.gone for watched in self._watched.values()):
            return False
        there = {run.id: run for run in self.home.unsorted_runs()}
        gone = self._watched.keys() - there.keys()
        new = there.keys() - self._watched.keys()
        for name in gone:
            del self._watched[name]
        for name in new:
            self._watched[name] = _Watched(there[name], self._clock)
        return bool(gone or new)

    def _tree(self) -> list[Row]:
        every = {name: watched for name, watched in self._watched.items() if not watched.gone}
        pipelines = {name for name, watched in every.items() if watched.row.stage is Stage.PIPELINE}
        beneath: dict[str, list[tuple[int, Row]]] = {name: [] for name in pipelines}
        top: list[Row] = []
        for name, watched in every.items():
            place = next((found for parent in watched.parents if (found := _place(name, parent, pipelines))), None)
            if place is None:
                top.append(watched.row)
                continue
            number, parent = place
            beneath[parent].append((number, structs.replace(watched.row, depth=1, pipeline=parent)))
        top.sort(key=lambda row: (-row.created, row.id))
        rows: list[Row] = []
        for row in top:
            rows.append(row)
            rows += [child for _, child in sorted(beneath.get(row.id, []), key=lambda pair: pair[0])]
        return rows


class _Watched:
    """One run and what was read of it. A run that has ended costs one ``stat`` a look."""

    def __init__(self, run: RunDir, clock: Callable[[], float]) -> None:
        self.run = run
        self.row = Row(id=one_line(run.id), path=run.path)
        self.parents: list[str] = []
        self.gone = False
        self._state = StateWatch(run, clock)
        self._history = History()
        self._events: Stamp | None = None
        self._attempt = -1
        self._recipe = Stamp(run.recipe_file)
        self._model = ""
        self._launch = Stamp(run.path / "launch.json")
        self._launch_trouble = ""
        self._trouble: str | None = None

    def poll(self) -> bool:
        """Look; whether its row or its place changed."""
        changed = self._state.poll()
        state = self._state.state
        self.gone = self._state.deleted
        if state is None:
            return self._set(self._damaged_row()) or self.gone
        if not changed and state.has_ended and self.row.trouble is None and self.row.phase == state.phase:
            return self.gone
        before = self.parents
        self._trouble = None
        try:
            metric = self._read(state)
        except OSError as error:
            metric, self._trouble = self.row.metric, one_line(str(error))
        row = self._row(state, metric, self._named(self._state.trouble or self._trouble))
        return self._set(row) or before != self.parents or self.gone

    def _read(self, state: State) -> tuple[str, float | None] | None:
        """What its files say besides the state.

        Raises:
            UsageError: one of them is damaged.
            OSError: one of them cannot be read.
        """
        if self._launch.changed():
            self.parents = known_parents(self.run)
            self._launch_trouble = read_launch(self.run)[1]
        if self._recipe.changed():
            self._model = "" if self._recipe.missing else _short(recipe_model(self.run.recipe_file))
        if self._events is None or self._attempt != state.attempt:
            self._attempt = state.attempt
            self._events = Stamp(self.run.attempt_dir(state.attempt) / "events.jsonl")
        if self._events.changed():
            history = recent_history(self.run, _GLANCE)
            self._history = history if history.last else recent_history(self.run)
        result, trouble = read_result(self.run) if state.has_ended else ({}, "")
        self._trouble = one_line(self._launch_trouble or trouble) or None
        return Reading(id=self.run.id, stage=state.stage, state=state, history=self._history, result=result).last_metric

    def _named(self, trouble: str | None) -> str | None:
        """Without the run's directory, which the row's name tells."""
        return trouble.replace(f"{one_line(str(self.run.path))}/", "") if trouble else trouble

    def _damaged_row(self) -> Row:
        return Row(
            id=self.row.id,
            path=self.run.path,
            phase="damaged",
            stage=stage_of(self.run),
            created=self.run.touched(),
            trouble=self._named(self._state.trouble),
        )

    def _row(self, state: State, metric: tuple[str, float | None] | None, trouble: str | None) -> Row:
        history = self._history
        at = "" if state.phase == "finished" or not history.at else one_line(history.at)
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
            metric=metric,
            at=at.removeprefix(f"{self.row.id}-"),
            attempt=state.attempt,
            exit_code=state.exit_code,
            cause=state.cause,
            trouble=trouble,
            elsewhere=self._state.elsewhere,
        )

    def _set(self, row: Row) -> bool:
        changed, self.row = row != self.row, row
        return changed


def _short(model: str) -> str:
    """What a run made, by that run's id; wherever its home was when the recipe was written."""
    made = _MADE.search(model)
    return made[1] if made else one_line(model)


def _place(name: str, parent: str, pipelines: set[str]) -> tuple[int, str] | None:
    """Number among a pipeline's children and the pipeline, if that is what the parent is to this run."""
    if parent not in pipelines:
        return None
    for suffix, number in _PLACES.items():
        if name == child_id(parent, suffix):
            return number, parent
    return None
