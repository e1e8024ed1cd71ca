"""Marks in the environment of a run's processes, by which they are attributed to its directory.

===============================  ========================================================================
``STACKLLAMA_RUN``               the run directory's path when the process was started
``STACKLLAMA_RUN_INODE``         the directory itself, ``device:inode`` (none before version 0.2)
===============================  ========================================================================

A directory has many paths (symbolic links, bind mounts) and may be renamed, so paths are never compared as text. A
process belongs to a run when the directory it was started for *is* the run's, or when the path it was given *leads* to
it now. Either is enough, because either can do harm: processes of a renamed run directory are recognized by the inode
alone; if a directory was deleted and created again under the same name, survivors of the old run write into the new one
by its path. An inode number that a later directory got by chance can only attribute survivors of a directory that was
deleted under them, which have to end as well.
"""

import os
from pathlib import Path

from msgspec import Struct

RUN_MARK = "STACKLLAMA_RUN"
INODE_MARK = "STACKLLAMA_RUN_INODE"

_PATH = f"{RUN_MARK}=".encode()
_INODE = f"{INODE_MARK}=".encode()


class Place(Struct, frozen=True):
    """A directory, whatever it is called."""

    path: Path
    inode: bytes | None
    """``device:inode``; None where there is no such directory (any more): then paths are compared as text."""

    @classmethod
    def of(cls, path: Path) -> "Place":
        """Identify a directory."""
        return cls(path, _inode(path))


def marks(run_dir: Path) -> dict[str, str]:
    """Return the variables that mark the processes of a run.

    Raises:
        OSError: there is no such directory.
    """
    status = run_dir.stat()
    return {RUN_MARK: str(run_dir), INODE_MARK: f"{status.st_dev}:{status.st_ino}"}


def belongs(proc: Path, place: Place) -> bool:
    """Return whether a process is marked as one of a run.

    Args:
        proc: its directory in ``/proc``.
        place: the run's directory.

    Raises:
        OSError: it has ended, or may not be read.
    """
    path, marked = _marks_of(proc)
    if not path:
        return False
    if place.inode is None:
        return path == os.fsencode(place.path)
    # As the process itself resolves the path, which may see other mounts; then as this process does.
    leads_to = _inode(Path(f"{proc}/root{os.fsdecode(path)}")) or _inode(Path(os.fsdecode(path)))
    return place.inode in (marked, leads_to)


def marked_run(proc: Path) -> Path | None:
    """Return the run directory that a process was started for, by the path it had then; None: for none.

    Args:
        proc: its directory in ``/proc``.

    Raises:
        OSError: it has ended, or may not be read.
    """
    path, _ = _marks_of(proc)
    return Path(os.fsdecode(path)) if path else None


def _marks_of(proc: Path) -> tuple[bytes, bytes | None]:
    """Return the path, empty for none, and the inode that a process is marked with."""
    variables = (proc / "environ").read_bytes().split(b"\0")
    path = next((each[len(_PATH) :] for each in variables if each.startswith(_PATH)), b"")
    return path, next((each[len(_INODE) :] for each in variables if each.startswith(_INODE)), None)


def _inode(path: Path) -> bytes | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - called for every process of this user
    except (OSError, ValueError):
        return None
    return f"{status.st_dev}:{status.st_ino}".encode()
