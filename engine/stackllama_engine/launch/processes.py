"""Processes of this machine: who they are, whether they live, which of them belong to a run, how they end.

A pid alone can be reused; a process is a (boot id, pid, start time), checked again at the moment of a signal.
Every process of a run carries ``STACKLLAMA_RUN=<run directory>`` in its environment, which survives new sessions,
double forks and a supervisor that was killed. Linux only (``/proc``, pidfd).
"""

import functools
import os
import re
import signal
import time
from pathlib import Path

from ..contract.run_dir import ProcessId

RUN_MARK = "STACKLLAMA_RUN"

_PROC = Path("/proc")
_GONE = (FileNotFoundError, ProcessLookupError)


def identify(pid: int) -> ProcessId | None:
    """The identity of a live process; None when there is none, or only its zombie."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except _GONE:
        return None
    state, *fields = text.rpartition(")")[2].split()  # the command's name may hold spaces and parentheses
    if state in "ZX":
        return None
    return ProcessId(boot_id=_boot_id(), pid=pid, start_time=int(fields[18]))  # proc_pid_stat(5), field 22


def alive(process: ProcessId | None) -> bool:
    """Whether exactly this process still runs."""
    return process is not None and identify(process.pid) == process


def send(process: ProcessId, number: signal.Signals) -> bool:
    """Signal exactly this process; False when it has gone.

    Raises:
        PermissionError: it belongs to somebody else.
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
    """Every live process of this user that is marked as belonging to the run, except the caller itself."""
    mark = f"{RUN_MARK}={run_dir}".encode()
    found: list[ProcessId] = []
    for entry in os.scandir(_PROC):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        process = identify(int(entry.name)) if _is_marked(Path(entry.path), mark) else None
        if process is not None:
            found.append(process)
    return found


def kill_run_processes(run_dir: Path, patience: float = 10.0) -> int:
    """SIGKILL every process of a run, again and again until none is left: one look is no proof.

    Args:
        run_dir: the run.
        patience: seconds to go on; a process in uninterruptible sleep may outlast it.

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


def _is_marked(proc: Path, mark: bytes) -> bool:
    try:
        if proc.stat().st_uid != os.getuid():
            return False
        return mark in (proc / "environ").read_bytes().split(b"\0")
    except (*_GONE, PermissionError):  # ended meanwhile, or not ours to read
        return False


@functools.cache
def _boot_id() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def oom_kills() -> int | None:
    """How many processes the kernel's out-of-memory killer has ended since boot; None where it does not say."""
    try:
        text = (_PROC / "vmstat").read_text(encoding="ascii")
    except OSError:  # not every sandbox has it
        return None
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else None
