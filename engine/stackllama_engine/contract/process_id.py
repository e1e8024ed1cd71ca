"""Identity of a process that a later one with the same pid does not share. Linux only (``/proc``)."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from .host import boot_id

_PROC = Path("/proc")


class ProcessId(Struct, frozen=True):
    """Identity of a process that a later one with the same pid does not share."""

    boot_id: str
    pid: Annotated[int, Meta(ge=1, le=1 << 22)]
    start_time: Annotated[int, Meta(ge=0, le=1 << 62)]
    """Clock ticks since boot, field 22 of ``/proc/<pid>/stat``."""


def identify(pid: int) -> ProcessId | None:
    """Return the identity of a live process; None if there is none, or only its zombie."""
    fields = stat_fields(pid)
    if fields is None or fields[0] in "ZX":
        return None
    return ProcessId(boot_id=boot_id(), pid=pid, start_time=int(fields[19]))  # proc_pid_stat(5), field 22


def stat_fields(pid: int) -> list[str] | None:
    """Read the fields of ``/proc/<pid>/stat`` from the third on; None if there is no such process."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()  # the command's name may hold spaces and parentheses
