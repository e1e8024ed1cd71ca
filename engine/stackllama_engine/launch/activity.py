"""Whether every rank of a run does something: processor time, bytes it reads or writes, its GPU's work.

A rank that waits for another in a collective spins with NCCL and sleeps with `gloo`; one that a signal has stopped does
neither. So each rank is looked at by itself.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from ..contract.run_dir import ProcessId
from .processes import Usage, environment_value, usage

_TICKS = os.sysconf("SC_CLK_TCK")
_BUSY_SHARE = 0.05
"""Of one CPU, from which on a rank is at work; threads that wake up to look around take less."""
_BUSY_BYTES = 1 << 20


class Idle(Struct, frozen=True, kw_only=True):
    """What a rank that does nothing looks like.

    Attributes:
        rank: its number; None where the run has but one process and no number.
        seconds: since it was last seen at work.
        stopped: pids that a signal has stopped.
    """

    rank: str | None
    seconds: float
    stopped: list[int]

    def __str__(self) -> str:
        who = "the worker" if self.rank is None else f"rank {self.rank}"
        if self.stopped:
            return f"{who} is stopped by a signal (pid {', '.join(map(str, self.stopped))})"
        return f"{who} has used no processor for {self.seconds:.0f} s"


class Activity:
    """Follows the processes of a run from look to look.

    Args:
        clock: monotonic seconds.

    Attributes:
        ranks: how many there were at the last look.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.ranks = 0
        self._clock = clock
        self._ranks: dict[ProcessId, str | None] = {}
        self._before: dict[ProcessId, Usage] = {}
        self._looked: float | None = None
        self._active: dict[str | None, float] = {}

    def look(self, processes: Iterable[ProcessId], gpu_work: Mapping[int, int] | None = None) -> list[Idle]:
        """The ranks that do nothing now and for how long, the longest first.

        Args:
            processes: the run's.
            gpu_work: pid → per cent that the GPU is at work whose memory it holds.
        """
        now = self._clock()
        found = {process: seen for process in processes if (seen := usage(process)) is not None}
        for process in found.keys() - self._ranks.keys():
            self._ranks[process] = environment_value(process, "RANK")
        groups: dict[str | None, list[ProcessId]] = {}
        for process in found:
            groups.setdefault(self._ranks[process], []).append(process)
        if len(groups) > 1:  # what starts and watches the ranks is none of them
            groups.pop(None, None)
        self.ranks = len(groups)
        idle: list[Idle] = []
        for rank, members in groups.items():
            stopped = [process.pid for process in members if found[process].stopped]
            if not stopped and self._at_work(members, found, now, gpu_work or {}):
                self._active[rank] = now
            seconds = now - self._active.setdefault(rank, now)
            if seconds > 0:
                idle.append(Idle(rank=rank, seconds=seconds, stopped=stopped))
        self._before, self._looked = found, now
        self._ranks = {process: self._ranks[process] for process in found}
        return sorted(idle, key=lambda one: -one.seconds)

    def _at_work(
        self, members: list[ProcessId], found: dict[ProcessId, Usage], now: float, gpu_work: Mapping[int, int]
    ) -> bool:
        if self._looked is None or now <= self._looked or any(process not in self._before for process in members):
            return True  # somebody new: it has just begun
        if any(gpu_work.get(process.pid, 0) for process in members):
            return True
        ticks = sum(found[process].ticks - self._before[process].ticks for process in members)
        moved = sum(found[process].bytes - self._before[process].bytes for process in members)
        return ticks / _TICKS / (now - self._looked) >= _BUSY_SHARE or moved >= _BUSY_BYTES
