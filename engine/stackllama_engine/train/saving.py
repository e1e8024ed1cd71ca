"""Saves on a disk that may be full: a run whose save finds no room waits, and saves when there is some."""

import shutil
from collections.abc import Callable
from pathlib import Path

from ..contract.checkpoints import UNSEALED, sealed
from ..contract.errors import StageError
from . import faults
from .reporting import Reporter


def newest_sealed(checkpoints: Path) -> Path | None:
    """Return the newest checkpoint by name, verified or not."""
    return next(reversed(sealed(checkpoints)), None)


class Saver:
    """Rank 0's saves of one attempt.

    Args:
        reporter: of rank 0.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def save(self, step: int, write: Callable[[], object]) -> bool:
        """Write a checkpoint; return False, report it and leave nothing behind when the disk had no room for it."""
        self._warn()
        try:
            write()
        except Exception as error:  # libraries report a full disk in classes of their own
            if not faults.is_disk_full(error):
                raise
            self.failed(step)
            return False
        newest = newest_sealed(self._reporter.run.checkpoints)
        if newest is not None and (notice := self._reporter.disk.measure(newest)):
            self._reporter.health(notice)
        return True

    def _warn(self) -> None:
        """Report that little room is left, ahead of the attempt to use it."""
        newest = newest_sealed(self._reporter.run.checkpoints)
        if newest is not None and (notice := self._reporter.disk.shortage(newest)):
            self._reporter.health(notice)

    def failed(self, step: int) -> None:
        """Remove what a failed save left behind, and report it."""
        for path in self._reporter.run.checkpoints.glob(f"{UNSEALED}*"):
            shutil.rmtree(path, ignore_errors=True)
        self._reporter.disk.refused()
        self._reporter.health(f"the disk is full: step {step} was not saved; retrying when there is room")

    def lost(self, step: int, checkpoints: Path) -> StageError:
        """Return the error of a stage that was asked to stop and could not save."""
        newest = newest_sealed(checkpoints)
        resumable = f"`runs resume` continues from {newest.name}" if newest else "there is no checkpoint before it"
        return StageError(
            f"The disk is full in phase save: asked to stop, step {step} could not be saved; {resumable}. "
            f"Make room under {checkpoints.parent}."
        )
