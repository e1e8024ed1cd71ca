"""Outcome of an attempt: the ``end`` event when there is one, else the exit status of its process."""

import os
import re
import signal
from pathlib import Path

from msgspec import Struct

from ..contract.checkpoints import sealed
from ..contract.errors import ExitCode
from ..contract.events import Event
from ..contract.run_dir import Phase, RunDir
from ..contract.run_files import open_file
from ..contract.stages import TRAINING_STAGES, Stage
from .ranks import signal_name

_LAST_LINES = 20
_LINE_LENGTH = 500
_TAIL_BYTES = 64 * 1024
_GOT_SIGNAL = re.compile(r"SignalException: Process \d+ got signal: (\d+)")
_KILLED = "often the kernel's out-of-memory killer; check `dmesg`"


class Outcome(Struct, frozen=True, kw_only=True):
    """A final phase, its exit code, and the cause unless it finished."""

    phase: Phase
    exit_code: int
    cause: str | None = None


def from_end_event(event: Event) -> Outcome:
    """Return the outcome that the worker itself wrote."""
    code = event.data.get("exit_code")
    cause = event.data.get("cause")
    if not isinstance(code, int) or isinstance(code, bool) or not 0 <= code <= 255:
        return Outcome(phase="failed", exit_code=ExitCode.FAILED, cause="The `end` event has no exit code.")
    return _from_code(code, str(cause) if cause else None)


def from_status(status: int, last_lines: list[str]) -> Outcome:
    """Return the outcome of a wait status of the worker's process (``os.waitpid``)."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        name = signal_name(-code)
        hint = f" — {_KILLED}" if -code == signal.SIGKILL else ""
        return Outcome(phase="failed", exit_code=128 - code, cause=f"killed by {name}{hint}")
    last_line = f": {last_lines[-1]}" if last_lines else ""
    return _from_code(code, None if code in (ExitCode.DONE, ExitCode.STOPPED) else f"exit code {code}{last_line}")


def on_resume(run: RunDir, stage: Stage) -> str:
    """Return in a sentence where a resume of this stage would start."""
    if stage is Stage.PIPELINE:
        return "Resuming continues with the stage it was in."
    if stage not in TRAINING_STAGES:
        return f"A {stage} saves no checkpoints: resuming starts it again."
    if sealed(run.checkpoints):
        return "Resuming continues from the last checkpoint."
    return "There is no checkpoint yet: resuming starts from step 0."


def stopped_by_force(number: signal.Signals, grace: float, on_resume: str) -> Outcome:
    """Return the outcome of a stop in which the worker had to be killed: steps since the last checkpoint are lost.

    Args:
        number: the signal that ended it.
        grace: seconds that it was given to stop by itself.
        on_resume: what :func:`on_resume` says.
    """
    return Outcome(
        phase="stopped",
        exit_code=128 + number,
        cause=f"The run did not stop within {grace:g} s of the request and was killed by {number.name}. {on_resume}",
    )


def signal_to_launcher(status: int, last_lines: list[str], on_resume: str) -> str:
    """Return why workers stopped without a request to the run: a signal from outside.

    Args:
        status: of the launcher, as from ``os.waitpid``. One process: the signal ended it. Several: torchelastic names
            the signal in its log, forwards it and ends with 1.
        last_lines: of the log.
        on_resume: what :func:`on_resume` says; whether anything was saved is in it.
    """
    name: str | None = None
    if os.WIFSIGNALED(status):
        name = signal_name(os.WTERMSIG(status))
    elif (number := got_signal("\n".join(last_lines))) is not None:
        name = signal_name(number)
    if name is None:
        return f"The workers received a signal to stop. {on_resume}"
    return f"`accelerate launch` received {name}; its workers stopped. {on_resume}"


def got_signal(log: str) -> int | None:
    """Return the newest signal that torchelastic reports in a log; None without one."""
    matches = list(_GOT_SIGNAL.finditer(log))
    return int(matches[-1][1]) if matches else None


def last_log_lines(log: Path) -> list[str]:
    """Return the last lines of a log, each cut to a readable length; of a progress bar only its last state."""
    lines = (line.rstrip("\r").rpartition("\r")[2].rstrip() for line in log_end(log).split("\n"))
    return [line[:_LINE_LENGTH] for line in lines if line][-_LAST_LINES:]


def log_end(log: Path) -> str:
    """Return the end of a log; empty where there is none."""
    try:
        with os.fdopen(open_file(log), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:  # none, or something else in its place: there is nothing to quote
        return ""


def _from_code(code: int, cause: str | None) -> Outcome:
    if code == ExitCode.DONE:
        return Outcome(phase="finished", exit_code=code)
    if code == ExitCode.STOPPED:
        return Outcome(phase="stopped", exit_code=code, cause=cause)
    return Outcome(phase="failed", exit_code=code, cause=cause or f"exit code {code}")
