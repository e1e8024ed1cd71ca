"""A pipeline: its own state and progress, its children in order, and the reader of the child that is shown."""

import time
from collections.abc import Callable

from msgspec import Struct

from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.history import History
from stackllama_engine.contract.run_dir import RunDir, State
from stackllama_engine.contract.stages import Stage

from ..pipelines import at_work, children
from ..sanitise import one_line
from .eta import Eta
from .run_reader import RunReader
from .run_state import RECONCILE_SECONDS, clean_state
from .series import Series


class Child(Struct, frozen=True):
    """A child that the pipeline has started. ``name`` is ``sft``, ``sft-merged``, ``reward``, …"""

    name: str
    run: RunDir
    state: State


class PipelineReader:
    """Reader of a pipeline: state and history are its own, series those of the child in ``shown``. Implements `Reader`.

    Attributes:
        own: the pipeline's own run; its progress counts children.
        children: those that were started, in order; at most a second old.
        chosen: name of the child to show; None: the active one, or that it ended at. Takes effect with `poll`.
        shown: its reader; None before the first child.
    """

    def __init__(self, run: RunDir, clock: Callable[[], float] = time.monotonic) -> None:
        self.own = RunReader(run, clock)
        self.children: list[Child] = []
        self.chosen: str | None = None
        self.shown: RunReader | None = None
        self._readers: dict[str, RunReader] = {}
        self._clock = clock
        self._poll_children_at = float("-inf")
        self._error: str | None = None

    @property
    def title(self) -> str:
        """The pipeline's id."""
        return self.own.title

    @property
    def stage(self) -> Stage | None:
        """``pipeline``; None until its state could be read."""
        return self.own.stage

    @property
    def history(self) -> History:
        """The pipeline's history: steps are children, ``phase`` is the id of the active child."""
        return self.own.history

    @property
    def series(self) -> dict[str, Series]:
        """Metrics of the child shown."""
        return self.shown.series if self.shown else {}

    @property
    def memory(self) -> dict[str, Series]:
        """Memory of the child shown."""
        return self.shown.memory if self.shown else {}

    @property
    def phase(self) -> str:
        """The phase of the pipeline's state."""
        return self.own.phase

    @property
    def elsewhere(self) -> str:
        """The other machine that its coordinator is on, in words."""
        return self.own.elsewhere

    @property
    def state(self) -> State | None:
        """The pipeline's state."""
        return self.own.state

    @property
    def bad_lines(self) -> int:
        """Number of bad lines in its own events and those of the children that were shown."""
        return self.own.bad_lines + sum(reader.bad_lines for reader in list(self._readers.values()))

    @property
    def error(self) -> str | None:
        """The reason why it, or the child shown, cannot be read."""
        return self.own.error or self._error or (self.shown.error if self.shown else None)

    @property
    def at_work(self) -> Child | None:
        """The active child, or the one that it ended at."""
        run = at_work([(child.run, child.state) for child in self.children])
        return next((child for child in self.children if run and child.run.id == run.id), None)

    def poll(self) -> bool:
        """Read what is new of the pipeline, of its children's states, and of the child shown."""
        changed = self.own.poll()
        changed |= self._find_children()
        before, self.shown = self.shown, self._choose()
        changed |= before is not self.shown
        return (self.shown.poll() if self.shown else False) or changed

    def eta(self, now: float) -> Eta | None:
        """Estimate the time left of the child shown; that of children not yet started is not known."""
        return self.shown.eta(now) if self.shown else None

    def _find_children(self) -> bool:
        state = self.own.state
        if state is None or self._clock() < self._poll_children_at:
            return False
        self._poll_children_at = self._clock() + RECONCILE_SECONDS
        before, last_error = self.children, self._error
        try:
            started = children(self.own.run, state)
        except (UsageError, OSError, TimeoutError) as error:
            self._error = one_line(str(error))
            return last_error != self._error
        self._error = None
        self.children = [Child(self._name(run), run, clean_state(its)) for run, its in started]
        return last_error is not None or _states(before) != _states(self.children)

    def _name(self, run: RunDir) -> str:
        return run.id.removeprefix(f"{self.own.run.id}-")

    def _choose(self) -> RunReader | None:
        chosen = next((child for child in self.children if child.name == self.chosen), None) or self.at_work
        if chosen is None:
            return None
        return self._readers.setdefault(chosen.name, RunReader(chosen.run, self._clock))


def _states(children: list[Child]) -> list[tuple[str, State]]:
    return [(child.name, child.state) for child in children]
