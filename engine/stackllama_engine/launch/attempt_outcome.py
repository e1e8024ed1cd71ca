"""How an attempt ended: the ``end`` event when there is one, else the exit status of its process."""

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
_KILLED = "often the kernel's out-of-memory killer; `dmesg` tells"


class Outcome(Struct, frozen=True, kw_only=True):
    """A final phase, its exit code, and the cause when it is not simply done."""

    phase: Phase
    exit_code: int
    cause: str | None = None


def from_end_event(event: Event) -> Outcome:
    """What the worker itself said last."""
    code = event.data.get("exit_code")
    cause = event.data.get("cause")
    if not isinstance(code, int) or isinstance(code, bool) or not 0 <= code <= 255:
        return Outcome(phase="failed", exit_code=ExitCode.FAILED, cause="The end event carries no exit code.")
    return _from_code(code, str(cause) if cause else None)


def from_status(status: int, last_lines: list[str]) -> Outcome:
    """What a wait status of the worker's process says (``os.waitpid``)."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        name = signal_name(-code)
        hint = f" — {_KILLED}" if -code == signal.SIGKILL else ""
        return Outcome(phase="failed", exit_code=128 - code, cause=f"killed by {name}{hint}")
    said = f": {last_lines[-1]}" if last_lines else ""
    return _from_code(code, None if code in (ExitCode.DONE, ExitCode.STOPPED) else f"exit code {code}{said}")


def on_resume(run: RunDir, stage: Stage) -> str:
    """What a resume would begin with, in a sentence that is true of the stage."""
    if stage is Stage.PIPELINE:
        return "Resuming goes on with the stage it was at."
    if stage not in TRAINING_STAGES:
        return f"A {stage} saves nothing on its way: resuming begins it anew."
    if sealed(run.checkpoints):
        return "Resuming goes on from the last checkpoint."
    return "There is no checkpoint yet: resuming begins at step 0."


def stopped_by_force(number: signal.Signals, grace: float, on_resume: str) -> Outcome:
    """Stopped as asked, but not by itself: whatever came after the last checkpoint is gone.

    Args:
        number: the signal that ended it.
        grace: seconds that it was given.
        on_resume: what :func:`on_resume` says.
    """
    return Outcome(
        phase="stopped",
        exit_code=128 + number,
        cause=f"Did not stop by itself within {grace:g} s of the request and was ended by {number.name}. {on_resume}",
    )


def signal_to_launcher(status: int, last_lines: list[str], on_resume: str) -> str:
    """Why workers stopped though nobody asked the run to: a signal from outside.

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
        return f"A signal told the workers to stop. {on_resume}"
    return f"{name} came to `accelerate launch`; its workers stopped. {on_resume}"


def got_signal(log: str) -> int | None:
    """The signal that torchelastic says it got, the newest; None: none."""
    found = list(_GOT_SIGNAL.finditer(log))
    return int(found[-1][1]) if found else None


def last_log_lines(log: Path) -> list[str]:
    """The last lines of a log, each cut to a readable length; of a progress bar only what it showed last."""
    lines = (line.rstrip("\r").rpartition("\r")[2].rstrip() for line in log_end(log).split("\n"))
    return [line[:_LINE_LENGTH] for line in lines if line][-_LAST_LINES:]


def log_end(log: Path) -> str:
    """The end of a log; empty where there is none."""
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
