"""Saves on a disk that may be full: a run whose save finds no room waits, and saves when there is some."""

import shutil
from collections.abc import Callable
from pathlib import Path

from ..contract.checkpoints import UNSEALED, sealed
from ..contract.errors import StageError
from . import faults
from .reporting import Reporter


def newest_sealed(checkpoints: Path) -> Path | None:
    """The newest checkpoint by name; whether it verifies is not looked at."""
    return next(reversed(sealed(checkpoints)), None)


class Saver:
    """Rank 0's saves of one attempt.

    Args:
        reporter: of rank 0.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def save(self, step: int, write: Callable[[], object]) -> bool:
        """Write a checkpoint; False when the disk had no room for it, which is said, and of it nothing stays."""
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

    def failed(self, step: int) -> None:
        """Remove what a failed save left behind, and say so."""
        for path in self._reporter.run.checkpoints.glob(f"{UNSEALED}*"):
            shutil.rmtree(path, ignore_errors=True)
        self._reporter.disk.refused()
        self._reporter.health(f"the disk is full: step {step} was not saved; it is tried again when there is room")

    def lost(self, step: int, checkpoints: Path) -> StageError:
        """Why a stage that was asked to stop cannot promise what a stop promises."""
        newest = newest_sealed(checkpoints)
        kept = f"`runs resume` goes on from {newest.name}" if newest else "there is no checkpoint before it"
        return StageError(
            f"The disk is full in phase save: asked to stop, step {step} could not be saved; {kept}. "
            f"Make room under {checkpoints.parent}."
        )
