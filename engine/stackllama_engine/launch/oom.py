"""Kills of the kernel's out-of-memory killer during an attempt, and the memory limit that they enforced.

The kernel counts the processes that it killed (``oom_kill``): of each cgroup, whichever limit it was, and of the whole
machine in ``/proc/vmstat``, which is used where the cgroup has no count. A count that rose while the attempt ran is
evidence; which process it was is in the kernel's log, which a user may not read.
"""

import re
from pathlib import Path

from msgspec import Struct

from ..contract.cgroups import ROOT, Cgroup, cgroups
from .main_memory import Limit, limits, machine_memory, tightest

_SLURM_JOB = re.compile(r"/(?:slurm\w*(?:\.\w+)?)/(?:.*/)?job_(\d+)")


class Killer(Struct, frozen=True, kw_only=True):
    """The memory limit of an attempt, and whether the out-of-memory killer was active meanwhile.

    Attributes:
        active: it killed a process of the run's cgroup (or, where that is not counted, of this machine); None: there is
            no count.
        limit: bytes of the nearest limit: a cgroup's, or all the memory there is.
        whose: the limit, in words.
        peak: most bytes that the cgroup of that limit held; None: it has no such counter.
    """

    active: bool | None
    limit: int
    whose: str
    peak: int | None = None


class OomWatch:
    """Kill counts before an attempt, to compare with those at its end.

    Args:
        root: of the file system; another one in tests.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._chain = cgroups(root)
        self._limits = limits(root)
        self._before = self._kills()
        self._reached = {cgroup.folder: _reached(cgroup) for cgroup in self._chain}

    def poll(self) -> Killer:
        """Compare with the counts of the beginning."""
        kills, before = self._kills(), self._before
        active = kills > before if kills is not None and before is not None else None
        reached = [limit for limit in self._limits if _reached(limit.cgroup) > self._reached[limit.cgroup.folder]]
        limit = tightest(reached) or tightest(self._limits)
        machine = machine_memory(self._root)[0]
        if limit is None or limit.bytes > machine:
            return Killer(active=active, limit=machine, whose="this machine's memory")
        return Killer(active=active, limit=limit.bytes, whose=_words(limit), peak=_peak(limit.cgroup))

    def _kills(self) -> int | None:
        """Read the count of the run's own cgroup, else of the machine."""
        for cgroup in self._chain:
            count = cgroup.counter(_EVENTS[cgroup.version], "oom_kill")
            if count is not None:
                return count
        return Cgroup("/", self._root / "proc", 0).counter("vmstat", "oom_kill")


_EVENTS = {1: "memory.oom_control", 2: "memory.events"}
_PEAK = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}


def _reached(cgroup: Cgroup) -> int:
    """Return how often this cgroup's own limit was hit (``oom``); version 1 does not count that."""
    return cgroup.counter("memory.events.local", "oom") or 0


def _peak(cgroup: Cgroup) -> int | None:
    return cgroup.number(_PEAK[cgroup.version])


def _words(limit: Limit) -> str:
    job = _SLURM_JOB.search(limit.cgroup.name)
    if job:
        return f"Slurm's memory limit of job {job[1]} (`--mem`; {limit})"
    return str(limit)
