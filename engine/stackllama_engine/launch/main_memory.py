"""How much main memory a process may use: the machine's, or less where one of its control groups is limited.

Limits nest: a job step's cgroup may be unlimited inside a job's that is not. So the process's own cgroup and every one
above it counts, as far as they can be seen from here (a container sees its own part of the tree). Both versions are
read, for a machine may mount both: version 2's ``memory.max``, at which the kernel kills, and ``memory.high``, above
which it slows a process down until nothing moves; version 1's ``memory.limit_in_bytes``.
"""

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

ROOT = Path("/")
_UNLIMITED = 1 << 60
"""Version 1 says "unlimited" as the largest number of whole pages."""
_ESCAPED = re.compile(r"\\([0-7]{3})")


class Cgroup(Struct, frozen=True):
    """A control group that accounts for memory, as a folder of files.

    Attributes:
        name: its path in the hierarchy, as ``/proc/self/cgroup`` has it.
        folder: where its files are.
        version: 1 or 2.
    """

    name: str
    folder: Path
    version: int

    def number(self, file: str) -> int | None:
        """The number in one of its files; None where there is none, or no such file."""
        text = (self.text(file) or "").strip()
        return int(text) if text.isdecimal() else None

    def counter(self, file: str, name: str) -> int | None:
        """A named number in a file of ``name number`` lines, such as ``memory.stat``."""
        found = re.search(rf"^{re.escape(name)} (\d+)$", self.text(file) or "", re.MULTILINE)
        return int(found[1]) if found else None

    def text(self, file: str) -> str | None:
        """A file of it; None where it cannot be read: other versions have other files, a root has hardly any."""
        try:
            return (self.folder / file).read_text(encoding="ascii", errors="replace")
        except OSError:
            return None


_LIMITS = {1: ("memory.limit_in_bytes",), 2: ("memory.max", "memory.high")}
_USED = {1: ("memory.usage_in_bytes", "total_inactive_file"), 2: ("memory.current", "inactive_file")}
"""What is held, and of it page cache that the kernel would drop first."""


class Limit(Struct, frozen=True):
    """Bytes that the processes of a cgroup may hold together.

    Attributes:
        kills: whether the kernel kills there; else it slows down.
    """

    bytes: int
    cgroup: Cgroup
    file: str
    kills: bool = True

    def __str__(self) -> str:
        return f"{self.file} of cgroup {self.cgroup.name}"

    @property
    def used(self) -> int:
        """Bytes held now that the kernel could not simply drop: page cache that waits to be dropped is left out."""
        held, stale = _USED[self.cgroup.version]
        return max(0, (self.cgroup.number(held) or 0) - (self.cgroup.counter("memory.stat", stale) or 0))


class MainMemory(Struct, frozen=True):
    """Bytes: all that a process may use, and what of it is free or can be freed now.

    Attributes:
        limit: what makes ``total`` less than the machine has; None: nothing does.
    """

    total: int
    available: int
    limit: Limit | None = None


def main_memory(root: Path = ROOT, process: int | str = "self") -> MainMemory:
    """This machine's memory, or as much of it as a process's cgroups leave it.

    Args:
        root: of the file system; another one in tests.
        process: its pid.
    """
    total, available = machine_memory(root)
    found = limits(root, process)
    for limit in found:
        available = min(available, max(0, limit.bytes - limit.used))
    smallest = min(found, key=lambda limit: limit.bytes, default=None)
    if smallest is None or smallest.bytes >= total:
        return MainMemory(total, available)
    return MainMemory(smallest.bytes, available, smallest)


def tightest(found: list[Limit]) -> Limit | None:
    """The limit at which the kernel kills first; of equals the nearest."""
    return min((limit for limit in found if limit.kills), key=lambda limit: limit.bytes, default=None)


def limits(root: Path = ROOT, process: int | str = "self") -> list[Limit]:
    """Every limit that a process is under, the nearest cgroup first."""
    found: list[Limit] = []
    chain = cgroups(root, process)
    for cgroup in chain:
        found += [
            Limit(number, cgroup, file, kills=file != "memory.high")
            for file in _LIMITS[cgroup.version]
            if (number := cgroup.number(file)) and number < _UNLIMITED
        ]
    for top in [cgroup for cgroup in chain if cgroup.version == 1][-1:]:
        # what is above a container's part of the tree is no folder there, but counted in this
        above = top.counter("memory.stat", "hierarchical_memory_limit")
        if above and above < min([_UNLIMITED, *(limit.bytes for limit in found)]):
            found.append(Limit(above, top, "memory.stat"))
    return found


def cgroups(root: Path = ROOT, process: int | str = "self") -> list[Cgroup]:
    """The cgroups that account for a process's memory, its own first, up to the root of what can be seen."""
    proc = root / "proc" / str(process)
    try:
        member = (proc / "cgroup").read_text(errors="replace").splitlines()
        mounts = (proc / "mountinfo").read_text(errors="replace").splitlines()
    except OSError:  # no such process, or a sandbox without either
        return []
    found: list[Cgroup] = []
    for line in member:
        number, controllers, path = line.split(":", 2)
        version = 2 if number == "0" and not controllers else 1
        if version == 2 or "memory" in controllers.split(","):
            found += _upwards(root, path, version, mounts)
    return found


def _upwards(root: Path, path: str, version: int, mounts: list[str]) -> Iterator[Cgroup]:
    """A cgroup and those above it, as far as a mount shows them."""
    there = list(_mounts(version, mounts))
    if not there:
        return
    shown, point = next((mount for mount in there if _is_below(path, mount[0])), there[0])
    inside = posixpath.relpath(path, shown)
    if not _is_below(path, shown):  # the mount shows another part of the tree; its root is as near as one comes
        inside, path = ".", shown
    folder, top = root / point.lstrip("/"), root / point.lstrip("/")
    if inside != ".":
        folder = folder / inside
    while True:
        yield Cgroup(path, folder, version)
        if folder == top:
            return
        folder, path = folder.parent, posixpath.dirname(path)


def _is_below(path: str, top: str) -> bool:
    return (path + "/").startswith(top.rstrip("/") + "/")


def _mounts(version: int, mounts: list[str]) -> Iterator[tuple[str, str]]:
    """The part of the hierarchy that is mounted, and where; see proc_pid_mountinfo(5)."""
    for line in mounts:
        fields = line.split(" ")
        kind = fields[fields.index("-") + 1 :]
        wanted = kind[0] == "cgroup2" if version == 2 else kind[0] == "cgroup" and "memory" in kind[2].split(",")
        if wanted:
            yield _plain(fields[3]), _plain(fields[4])


def _plain(field: str) -> str:
    """A path without mountinfo's octal escapes."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), field)


def machine_memory(root: Path = ROOT) -> tuple[int, int]:
    """Bytes that this machine has, whatever a cgroup may use of them, and how many are free or can be freed."""
    try:
        text = (root / "proc/meminfo").read_text(encoding="ascii")
    except OSError:
        text = ""
    found = {name: int(number) << 10 for name, number in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    total = found.get("MemTotal") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total, found.get("MemAvailable", total)
