"""Runs of a home that end or stall, or in which a health rule finds something, while somebody waits for them."""

import time
from collections.abc import Callable

from msgspec import Struct

from stackllama_engine.contract.children import is_child
from stackllama_engine.contract.run_dir import ENDED, Home, State

from ..sanitise import one_line
from .file_stamp import Stamp
from .run_state import StateWatch

_WORTH_TELLING = frozenset({*ENDED, "stalled"})


FINDING = "finding"
"""In the place of a phase: a health rule has found something, and the run continues."""


class Ending(Struct, frozen=True):
    """A run that has ended, failed or stalled, or in which something was found; sanitised."""

    run_id: str
    phase: str
    cause: str | None

    def __str__(self) -> str:
        return f"{self.run_id} {self.phase}" + (f": {self.cause}" if self.cause else "")


class Endings:
    """Follower of the states of all runs; one that has ended costs a ``stat`` per poll."""

    def __init__(self, home: Home, clock: Callable[[], float] = time.monotonic) -> None:
        self._home = home
        self._clock = clock
        self._folder = Stamp(home.runs_dir)
        self._watches: dict[str, StateWatch] = {}
        self._phases: dict[str, str] | None = None
        self._findings: dict[str, frozenset[str]] = {}

    def poll(self) -> list[Ending]:
        """Return what has ended, stalled or been found since the last poll; nothing of what the first one finds.

        The runs of a pipeline end silently: it ends for them. What is found in one is of its own.
        """
        try:
            self._find_runs()
        except OSError:  # the list of runs says that it cannot be read
            return []
        endings: list[Ending] = []
        before, self._phases = self._phases, {}
        for run_id, watch in self._watches.items():
            watch.poll()
            if watch.state is None:
                continue
            phase = self._phases[run_id] = watch.state.phase
            if before is not None:
                endings += self._findings_of(run_id, watch.state)
            self._findings[run_id] = frozenset(watch.state.findings)
            new = before is not None and before.get(run_id) != phase
            if new and phase in _WORTH_TELLING and not is_child(watch.run):
                cause = watch.state.cause if phase in ("failed", "lost") else None
                endings.append(Ending(one_line(run_id), phase, cause))
        return endings

    def _findings_of(self, run_id: str, state: State) -> list[Ending]:
        """Return what was found since the last poll."""
        before = self._findings.get(run_id, frozenset[str]())
        return [Ending(one_line(run_id), FINDING, text) for rule, text in state.findings.items() if rule not in before]

    def _find_runs(self) -> None:
        if not self._folder.changed():
            return
        present = {run.id: run for run in self._home.unsorted_runs()}
        for gone in self._watches.keys() - present.keys():
            del self._watches[gone]
        for run_id in present.keys() - self._watches.keys():
            self._watches[run_id] = StateWatch(present[run_id], self._clock)
