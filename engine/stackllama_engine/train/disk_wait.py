"""Waiting on a full disk, at a step boundary, with everything in memory, until there is room or the run has to stop.

What could not be written is tried again every few seconds, and the run resumes by itself. It is saved into the room
that was held back, and stopped (75), when somebody asks it to, or after ``STACKLLAMA_DISK_PATIENCE`` seconds.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from ..contract import checkpoints
from ..contract.env_settings import setting
from ..contract.errors import StageError
from ..contract.requests import WAITING_FOR_ROOM
from .control import Requests
from .pending_writes import is_disk_full
from .reporting import Reporter
from .signals import Stopped

_PATIENCE = 1800.0  # seconds
_POLL_SECONDS = 2.0
_REPORT_SECONDS = 60.0  # between two records of how much room there is


def wait_for_room(requests: Requests, reporter: Reporter, step: int) -> bool:
    """Wait out a full disk after ``step`` steps (a collective).

    Returns:
        whether to save and stop: somebody asked for it, or it took too long. The reserve is released then, and
        ``reporter.stop_cause`` says why.
    """
    disk, before = reporter.disk, reporter.current_phase
    reported_at, first_reason, began = -_REPORT_SECONDS, "", disk.since or time.monotonic()
    while True:
        reason = disk.poll() if reporter.is_main else None
        now = time.monotonic()
        over = reason is not None and now - began >= patience()
        agreed = requests.agree(over, problem=reason is not None)
        if not agreed.problem:
            if first_reason:
                reporter.phase(before)
                reporter.health(f"there is room on the disk again: continued after step {step}")
            return False
        if reason and not first_reason:
            first_reason = reason
            reporter.health(f"{WAITING_FOR_ROOM} after step {step}: {reason}; everything stays in memory", urgent=True)
        if reason and now - reported_at >= _REPORT_SECONDS:
            reported_at = now
            reporter.phase(WAITING_FOR_ROOM, reason)
        if agreed.stop or agreed.failed:
            if reporter.is_main:
                why = "as asked" if agreed.stop else f"after waiting {now - began:.0f} s for room"
                reporter.stop_cause = (
                    f"The disk is full: {reason}. Saved and stopped after step {step}, {why}. Make room under "
                    f"{reporter.run.path}, then resume."
                )
                disk.release()
            reporter.phase(before)
            return True
        time.sleep(_POLL_SECONDS)


class Saved(NamedTuple):
    """Outcome of saves that were tried until there was room."""

    saved: bool
    stop: bool
    """Whether the run stops after it."""


def until_saved(requests: Requests, reporter: Reporter, step: int, save: Callable[[], bool], *, stop: bool) -> Saved:
    """Save, and wait for room where there is none (a collective).

    Args:
        requests: a stop ends the waiting.
        reporter: of this rank.
        step: number of finished steps.
        save: whether it is saved, the same on every rank; leaves nothing behind when it finds no room.
        stop: the run is to end after this: it does not wait, and may use the room that was held back.
    """
    released = False
    while not save():
        if released:
            return Saved(False, True)
        if stop:
            reporter.disk.release()
        stop = released = stop or wait_for_room(requests, reporter, step)
    return Saved(True, stop)


def write_at_last(requests: Requests, reporter: Reporter, step: int, write: Callable[[], object]) -> bool:
    """Write a stage's result on rank 0, waiting for room (a collective).

    Args:
        requests: a stop ends the waiting.
        reporter: of this rank.
        step: that were done.
        write: leaves nothing behind when it finds no room.

    Returns:
        False: there was no room, also not in the reserve, and the waiting is over.
    """
    last = False
    while True:
        failed = False
        if reporter.is_main:
            try:
                write()
            except Exception as error:  # libraries report a full disk in classes of their own
                if not is_disk_full(error):
                    raise
                failed = True
        if not requests.agree(failed).failed:
            return True
        if last:
            return False
        last = wait_for_room(requests, reporter, step)


def patience() -> float:
    """Return the seconds that a run waits for room."""
    seconds = setting("STACKLLAMA_DISK_PATIENCE")
    return _PATIENCE if seconds is None else seconds


def write_result(
    requests: Requests, reporter: Reporter, step: int, write: Callable[[], object], *, what: str = "what was trained"
) -> None:
    """Write a stage's result after its last step; arguments as of :func:`write_at_last`.

    Raises:
        Stopped: there was no room for it, but a checkpoint holds all of the training: a resume has nothing to train.
        StageError: there was no room for it.
    """
    if write_at_last(requests, reporter, step, write):
        return
    where = reporter.run.path
    newest, _ = checkpoints.newest(reporter.run.checkpoints)
    if newest is None or checkpoints.step_of(newest) != step:
        raise StageError(f"The disk is full: {what} could not be written. Make room under {where}, then resume.")
    reporter.stop_cause = (
        f"The disk is full: {what} could not be written. {newest.name} holds all of the training: make room under "
        f"{where}, then resume; nothing is trained again."
    )
    raise Stopped
