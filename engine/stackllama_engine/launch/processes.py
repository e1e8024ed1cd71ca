"""Processes of this machine: identity, resource usage, membership in a run, signals.

A pid alone can be reused; a process is a (boot id, pid, start time), checked again at the moment of a signal.
Every process of a run carries a mark in its environment (:mod:`.process_marks`), which survives new sessions, double
forks and a supervisor that was killed. Linux only (``/proc``, pidfd).
"""

import os
import re
import signal
import time
from pathlib import Path

from msgspec import Struct

from ..contract.process_id import ProcessId, identify, stat_fields
from .process_marks import Place, belongs

_PROC = Path("/proc")
_GONE = (FileNotFoundError, ProcessLookupError)
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Usage(Struct, frozen=True, kw_only=True):
    """Resources that a process has used since it began.

    Attributes:
        state: as in proc_pid_stat(5), field 3.
        ticks: of CPU time; ``SC_CLK_TCK`` per second.
        memory: resident bytes.
        bytes: read and written, caches and pipes included; 0 where the kernel does not count them.
    """

    state: str
    ticks: int
    memory: int
    bytes: int

    @property
    def stopped(self) -> bool:
        """Whether a signal or a debugger has stopped it."""
        return self.state in "Tt"


def alive(process: ProcessId | None) -> bool:
    """Return whether exactly this process still runs."""
    return process is not None and identify(process.pid) == process


def send(process: ProcessId, number: signal.Signals) -> bool:
    """Signal exactly this process; False when it has ended.

    Raises:
        PermissionError: it belongs to another user.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if identify(process.pid) != process:  # the pid was reused before the descriptor was opened
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def run_processes(run_dir: Path) -> list[ProcessId]:
    """List the live processes of this user that are marked as belonging to the run, except the caller itself."""
    place = Place.of(run_dir)
    members: list[ProcessId] = []
    for entry in os.scandir(_PROC):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        process = identify(int(entry.name)) if _is_marked(Path(entry.path), place) else None
        if process is not None:
            members.append(process)
    return members


def children(pid: int) -> list[int]:
    """List the pids of a process's children that it has not reaped yet."""
    entries = (entry.name for entry in os.scandir(_PROC) if entry.name.isdigit())
    return [int(name) for name in entries if (fields := stat_fields(int(name))) is not None and int(fields[1]) == pid]


def descendants(pid: int) -> list[ProcessId]:
    """List every live process below this one, marked or not."""
    parents: dict[int, int] = {}
    for entry in os.scandir(_PROC):
        if entry.name.isdigit() and (fields := stat_fields(int(entry.name))) is not None:
            parents[int(entry.name)] = int(fields[1])  # field 4
    below: set[int] = set()
    level = {pid}
    while level := {child for child, parent in parents.items() if parent in level} - below:
        below |= level
    return [process for each in sorted(below) if (process := identify(each)) is not None]


def usage(process: ProcessId) -> Usage | None:
    """Read what exactly this process has used; None when it has ended. Fields 3, 14, 15, 22, 24 of proc_pid_stat(5)."""
    fields = stat_fields(process.pid)
    if fields is None or fields[0] in "ZX" or int(fields[19]) != process.start_time:
        return None
    return Usage(
        state=fields[0],
        ticks=int(fields[11]) + int(fields[12]),
        memory=int(fields[21]) * _PAGE,
        bytes=_moved_bytes(process.pid),
    )


def environment_value(process: ProcessId, name: str) -> str | None:
    """Read a variable of the environment it was started with; None without one, or where it may not be read."""
    prefix = f"{name}=".encode()
    try:
        variables = (_PROC / str(process.pid) / "environ").read_bytes().split(b"\0")
    except (*_GONE, PermissionError):
        return None
    return next((each[len(prefix) :].decode(errors="replace") for each in variables if each.startswith(prefix)), None)


def arguments(process: ProcessId) -> list[str]:
    """Read its arguments, the program first; none when it has ended."""
    try:
        text = (_PROC / str(process.pid) / "cmdline").read_bytes()
    except (*_GONE, PermissionError):
        return []
    return [os.fsdecode(argument) for argument in text.split(b"\0")[:-1]]


def command_line(process: ProcessId) -> str:
    """Read its arguments as one line; empty when it has ended."""
    return " ".join(os.fsencode(" ".join(arguments(process))).decode(errors="replace").split())


def catches(process: ProcessId, number: signal.Signals) -> bool:
    """Return whether it has a handler for a signal."""
    try:
        text = (_PROC / str(process.pid) / "status").read_text(errors="replace")
    except (*_GONE, PermissionError):
        return False
    match = re.search(r"^SigCgt:\s*([0-9a-f]+)$", text, re.MULTILINE)
    return match is not None and bool(int(match[1], 16) >> (number - 1) & 1)


def _moved_bytes(pid: int) -> int:
    try:
        text = (_PROC / str(pid) / "io").read_text(errors="replace")
    except (*_GONE, PermissionError):
        return 0
    return sum(int(number) for number in re.findall(r"^[rw]char: (\d+)$", text, re.MULTILINE))


def kill_run_processes(run_dir: Path, patience: float = 10.0) -> int:
    """SIGKILL every process of a run, repeatedly until none is left: one may fork while the others are listed.

    Args:
        run_dir: the run.
        patience: seconds to repeat; a process in uninterruptible sleep may outlast it.

    Returns:
        how many distinct processes were signalled.

    Raises:
        TimeoutError: some are left.
    """
    killed: set[ProcessId] = set()
    deadline = time.monotonic() + patience
    while left := run_processes(run_dir):
        if time.monotonic() > deadline:
            pids = ", ".join(str(process.pid) for process in left)
            raise TimeoutError(f"processes {pids} of {run_dir} survived SIGKILL for {patience:.0f} s")
        killed.update(process for process in left if send(process, signal.SIGKILL))
        time.sleep(0.01)
    return len(killed)


def _is_marked(proc: Path, place: Place) -> bool:
    try:
        return proc.stat().st_uid == os.getuid() and belongs(proc, place)
    except (*_GONE, PermissionError):  # ended meanwhile, or not readable for this user
        return False
