"""Runs of a home that end or stall while somebody waits for them."""

import time
from collections.abc import Callable

from msgspec import Struct

from stackllama_engine.contract.children import is_child
from stackllama_engine.contract.run_dir import ENDED, Home

from ..sanitise import one_line
from .file_stamp import Stamp
from .run_state import StateWatch

_WORTH_TELLING = frozenset({*ENDED, "stalled"})


class Ending(Struct, frozen=True):
    """A run that has ended, failed or stalled; sanitised."""

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

    def poll(self) -> list[Ending]:
        """Return the runs that have ended or stalled since the last poll; none of what the first one finds.

        The runs of a pipeline end silently: it ends for them.
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
            new = before is not None and before.get(run_id) != phase
            if new and phase in _WORTH_TELLING and not is_child(watch.run):
                cause = watch.state.cause if phase in ("failed", "lost") else None
                endings.append(Ending(one_line(run_id), phase, cause))
        return endings

    def _find_runs(self) -> None:
        if not self._folder.changed():
            return
        present = {run.id: run for run in self._home.unsorted_runs()}
        for gone in self._watches.keys() - present.keys():
            del self._watches[gone]
        for run_id in present.keys() - self._watches.keys():
            self._watches[run_id] = StateWatch(present[run_id], self._clock)
