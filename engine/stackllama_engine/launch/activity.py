"""Activity of every rank of a run: CPU time, bytes read or written, GPU utilization.

A rank that waits for another in a collective spins with NCCL and sleeps with `gloo`; one that a signal has stopped does
neither. So each rank is measured by itself.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from ..contract.run_dir import ProcessId
from .processes import Usage, environment_value, usage

_TICKS = os.sysconf("SC_CLK_TCK")
_BUSY_SHARE = 0.05
"""Share of one CPU from which on a rank counts as busy; threads that only poll take less."""
_BUSY_BYTES = 1 << 20


class Idle(Struct, frozen=True, kw_only=True):
    """An idle rank.

    Attributes:
        rank: its number; None where the run has one process only.
        seconds: since it was last busy.
        stopped: pids that a signal has stopped.
    """

    rank: str | None
    seconds: float
    stopped: list[int]

    def __str__(self) -> str:
        who = "the worker" if self.rank is None else f"rank {self.rank}"
        if self.stopped:
            return f"{who} is stopped by a signal (pid {', '.join(map(str, self.stopped))})"
        return f"{who} has used no CPU time for {self.seconds:.0f} s"


class Activity:
    """Follows the processes of a run from poll to poll.

    Args:
        clock: monotonic seconds.

    Attributes:
        ranks: how many there were at the last poll.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.ranks = 0
        self._clock = clock
        self._ranks: dict[ProcessId, str | None] = {}
        self._before: dict[ProcessId, Usage] = {}
        self._polled: float | None = None
        self._active: dict[str | None, float] = {}

    def poll(self, processes: Iterable[ProcessId], gpu_work: Mapping[int, int] | None = None) -> list[Idle]:
        """Return the idle ranks and since when, the longest first.

        Args:
            processes: the run's.
            gpu_work: pid → utilization in percent of the GPU whose memory it holds.
        """
        now = self._clock()
        usages = {process: used for process in processes if (used := usage(process)) is not None}
        for process in usages.keys() - self._ranks.keys():
            self._ranks[process] = environment_value(process, "RANK")
        groups: dict[str | None, list[ProcessId]] = {}
        for process in usages:
            groups.setdefault(self._ranks[process], []).append(process)
        if len(groups) > 1:  # the launcher of the ranks is none of them
            groups.pop(None, None)
        self.ranks = len(groups)
        idle: list[Idle] = []
        for rank, members in groups.items():
            stopped = [process.pid for process in members if usages[process].stopped]
            if not stopped and self._is_busy(members, usages, now, gpu_work or {}):
                self._active[rank] = now
            seconds = now - self._active.setdefault(rank, now)
            if seconds > 0:
                idle.append(Idle(rank=rank, seconds=seconds, stopped=stopped))
        self._before, self._polled = usages, now
        self._ranks = {process: self._ranks[process] for process in usages}
        return sorted(idle, key=lambda one: -one.seconds)

    def _is_busy(
        self, members: list[ProcessId], usages: dict[ProcessId, Usage], now: float, gpu_work: Mapping[int, int]
    ) -> bool:
        if self._polled is None or now <= self._polled or any(process not in self._before for process in members):
            return True  # a new process: it has just begun
        if any(gpu_work.get(process.pid, 0) for process in members):
            return True
        ticks = sum(usages[process].ticks - self._before[process].ticks for process in members)
        moved = sum(usages[process].bytes - self._before[process].bytes for process in members)
        return ticks / _TICKS / (now - self._polled) >= _BUSY_SHARE or moved >= _BUSY_BYTES
