"""Control groups of a process: its own and every one above it, since limits nest.

As far as they are visible: a container sees its own part of the tree. Both versions are read, since a machine may
mount both.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

ROOT = Path("/")
_ESCAPED = re.compile(r"\\([0-7]{3})")


class Cgroup(Struct, frozen=True):
    """A control group, as a folder of files.

    Attributes:
        name: its path in the hierarchy, as ``/proc/self/cgroup`` has it.
        folder: where its files are.
        version: 1 or 2.
    """

    name: str
    folder: Path
    version: int

    def number(self, file: str) -> int | None:
        """Read the number in one of its files; None where there is none, or no such file."""
        text = (self.text(file) or "").strip()
        return int(text) if text.isdecimal() else None

    def counter(self, file: str, name: str) -> int | None:
        """Read a named number from a file of ``name number`` lines, such as ``memory.stat``."""
        match = re.search(rf"^{re.escape(name)} (\d+)$", self.text(file) or "", re.MULTILINE)
        return int(match[1]) if match else None

    def text(self, file: str) -> str | None:
        """Read one of its files; None where it cannot be read: versions differ, and a root has hardly any."""
        try:
            return (self.folder / file).read_text(encoding="ascii", errors="replace")
        except OSError:
            return None


def cgroups(root: Path = ROOT, process: int | str = "self", controller: str = "memory") -> list[Cgroup]:
    """List the cgroups that a controller puts a process into, its own first, up to the visible root.

    Args:
        root: of the file system; another one in tests.
        process: its pid.
        controller: ``memory`` or ``cpu``.
    """
    proc = root / "proc" / str(process)
    try:
        member = (proc / "cgroup").read_text(errors="replace").splitlines()
        mounts = (proc / "mountinfo").read_text(errors="replace").splitlines()
    except OSError:  # no such process, or a sandbox without either
        return []
    chain: list[Cgroup] = []
    for line in member:
        number, controllers, path = line.split(":", 2)
        version = 2 if number == "0" and not controllers else 1
        if version == 2 or controller in controllers.split(","):
            chain += _upwards(root, path, list(_mounts(version, controller, mounts)), version)
    return chain


def _upwards(root: Path, path: str, there: list[tuple[str, str]], version: int) -> Iterator[Cgroup]:
    """Yield a cgroup and those above it, as far as a mount contains them."""
    if not there:
        return
    shown, point = next((mount for mount in there if _is_below(path, mount[0])), there[0])
    inside = posixpath.relpath(path, shown)
    if not _is_below(path, shown):  # another part of the tree is mounted: its root is the nearest there is
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


def _mounts(version: int, controller: str, mounts: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the part of the hierarchy that is mounted, and where; see proc_pid_mountinfo(5)."""
    for line in mounts:
        fields = line.split(" ")
        kind = fields[fields.index("-") + 1 :]
        matches = kind[0] == "cgroup2" if version == 2 else kind[0] == "cgroup" and controller in kind[2].split(",")
        if matches:
            yield _plain(fields[3]), _plain(fields[4])


def _plain(field: str) -> str:
    """Decode mountinfo's octal escapes in a path."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), field)
