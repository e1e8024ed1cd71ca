"""Main memory that a process may use: the machine's, or less where one of its control groups has a limit.

Limits nest: a job step's cgroup may be unlimited inside a job's that is not. So the process's own cgroup and every one
above it counts, as far as they are visible (a container sees its own part of the tree). Both versions are read, since a
machine may mount both: version 2's ``memory.max``, at which the kernel kills, and ``memory.high``, above which it
throttles a process until it makes no progress; version 1's ``memory.limit_in_bytes``.
"""

import os
import re
from pathlib import Path

from msgspec import Struct

from ..contract.cgroups import ROOT, Cgroup, cgroups

_UNLIMITED = 1 << 60
"""Version 1 writes "unlimited" as the largest number of whole pages."""

_LIMITS = {1: ("memory.limit_in_bytes",), 2: ("memory.max", "memory.high")}
_USED = {1: ("memory.usage_in_bytes", "total_inactive_file"), 2: ("memory.current", "inactive_file")}
"""Files of the memory in use, and of the page cache in it that the kernel would drop first."""


class Limit(Struct, frozen=True):
    """Bytes that the processes of a cgroup may hold together.

    Attributes:
        kills: whether the kernel kills there; else it throttles.
    """

    bytes: int
    cgroup: Cgroup
    file: str
    kills: bool = True

    def __str__(self) -> str:
        return f"{self.file} of cgroup {self.cgroup.name}"

    @property
    def used(self) -> int:
        """Bytes in use, without inactive page cache, which the kernel could drop."""
        held, stale = _USED[self.cgroup.version]
        return max(0, (self.cgroup.number(held) or 0) - (self.cgroup.counter("memory.stat", stale) or 0))


class MainMemory(Struct, frozen=True):
    """Bytes that a process may use, and how many of them are free or can be freed now.

    Attributes:
        limit: the limit that makes ``total`` less than the machine has; None without one.
    """

    total: int
    available: int
    limit: Limit | None = None


def main_memory(root: Path = ROOT, process: int | str = "self") -> MainMemory:
    """Return this machine's memory, or as much of it as a process's cgroups allow.

    Args:
        root: of the file system; another one in tests.
        process: its pid.
    """
    total, available = machine_memory(root)
    all_limits = limits(root, process)
    for limit in all_limits:
        available = min(available, max(0, limit.bytes - limit.used))
    smallest = min(all_limits, key=lambda limit: limit.bytes, default=None)
    if smallest is None or smallest.bytes >= total:
        return MainMemory(total, available)
    return MainMemory(smallest.bytes, available, smallest)


def tightest(candidates: list[Limit]) -> Limit | None:
    """Return the limit at which the kernel kills first; of equals the nearest."""
    return min((limit for limit in candidates if limit.kills), key=lambda limit: limit.bytes, default=None)


def limits(root: Path = ROOT, process: int | str = "self") -> list[Limit]:
    """List every limit that applies to a process, the nearest cgroup first."""
    applying: list[Limit] = []
    chain = cgroups(root, process)
    for cgroup in chain:
        applying += [
            Limit(number, cgroup, file, kills=file != "memory.high")
            for file in _LIMITS[cgroup.version]
            if (number := cgroup.number(file)) and number < _UNLIMITED
        ]
    for top in [cgroup for cgroup in chain if cgroup.version == 1][-1:]:
        # limits above a container's part of the tree have no folder there, but are counted in this file
        above = top.counter("memory.stat", "hierarchical_memory_limit")
        if above and above < min([_UNLIMITED, *(limit.bytes for limit in applying)]):
            applying.append(Limit(above, top, "memory.stat"))
    return applying


def machine_memory(root: Path = ROOT) -> tuple[int, int]:
    """Return the machine's bytes of RAM, without any cgroup limit, and how many are free or can be freed."""
    try:
        text = (root / "proc/meminfo").read_text(encoding="ascii")
    except OSError:
        text = ""
    sizes = {name: int(number) << 10 for name, number in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    total = sizes.get("MemTotal") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total, sizes.get("MemAvailable", total)
