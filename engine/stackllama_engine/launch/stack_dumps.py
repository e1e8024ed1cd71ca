"""Stack dumps of a stalled run's processes: by py-spy where it is installed, else by their own signal handler."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from ..contract.atomic_files import open_private
from ..contract.run_dir import ProcessId
from ..contract.stacks import STACK_SIGNAL, STACKS_FILE
from .processes import catches, command_line, environment_value, send, usage

_PROCESSES = 64
_COMMAND = 200  # characters
_SPY_SECONDS = 20.0
_RESPONSE_SECONDS = 3.0
_ALL_SECONDS = 30.0
_QUIET_SECONDS = 0.2


def write_stacks(folder: Path, processes: Iterable[ProcessId]) -> Path:
    """Append the stacks of every process to ``stacks.txt`` in the attempt's folder.

    Raises:
        OSError: the file cannot be written.
    """
    path = folder / STACKS_FILE
    descriptor = open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        begun = time.monotonic()
        for process in sorted(processes, key=lambda one: one.pid)[:_PROCESSES]:
            if time.monotonic() - begun < _ALL_SECONDS:
                _write_one(descriptor, process)
    finally:
        os.close(descriptor)
    return path


def drop_empty_stacks(folder: Path) -> None:
    """Remove the file where it is empty."""
    path = folder / STACKS_FILE
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size == 0:
            path.unlink()


def _write_one(descriptor: int, process: ProcessId) -> None:
    used = usage(process)
    if used is None:
        return
    rank = environment_value(process, "RANK")
    who = f"pid {process.pid}" + ("" if rank is None else f", rank {rank}")
    heading = f"\n=== {time.strftime('%F %T')} {who}: {command_line(process)[:_COMMAND]}\n"
    os.write(descriptor, (heading + (f"stopped by a signal (state {used.state})\n" if used.stopped else "")).encode())
    dump = _spy(process, stopped=used.stopped)
    if dump is not None:
        os.write(descriptor, dump)
    elif not used.stopped:  # a stopped one would write it when it continues, too late
        _ask(descriptor, process)


def _spy(process: ProcessId, *, stopped: bool) -> bytes | None:
    """Return the output of py-spy; None where it is not installed, or lacks permission."""
    program = shutil.which("py-spy")
    if program is None:
        return None
    argv = [program, "dump", "--pid", str(process.pid), *(["--nonblocking"] if stopped else [])]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=_SPY_SECONDS, stdin=subprocess.DEVNULL, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # where the supervisor has reaped it meanwhile, its exit code is lost
    return done.stdout if done.returncode == 0 and done.stdout else None


def _ask(descriptor: int, process: ProcessId) -> None:
    """Signal the process to write its own stack, and wait until it has."""
    if not catches(process, STACK_SIGNAL):
        os.write(descriptor, b"no stack: the process does not handle the stack-dump signal\n")
        return
    size = os.fstat(descriptor).st_size
    if not send(process, STACK_SIGNAL):
        return
    begun = last = time.monotonic()
    while (now := time.monotonic()) - begun < _RESPONSE_SECONDS:
        grown = os.fstat(descriptor).st_size
        if grown > size:
            size, last = grown, now
        elif last > begun and now - last > _QUIET_SECONDS:
            return
        time.sleep(0.02)
    if last == begun:
        os.write(descriptor, b"no stack: the process did not respond to the stack-dump signal\n")
