"""A run directory that is renamed, replaced or removed while the run trains in it, as its supervisor sees it.

The supervisor finds the directory again; the worker knows it by its path alone, and would write into whatever is there
now. Where nothing is there a symbolic link leads it on for as long as it takes to save and stop (no run of that name is
listed: a link is no run). Where something is, or the directory is gone, nothing can be saved, and nothing may be
written: the worker is killed.
"""

import contextlib
from pathlib import Path

import msgspec

from ..contract.errors import ExitCode, UsageError
from ..contract.run_dir import RunDir
from .attempt_outcome import Outcome
from .kept_directory import KeptDirectory


def remove_leftover_link(run: RunDir) -> None:
    """Of a supervisor that was killed while it led its worker on: that link would keep the run's former name."""
    with contextlib.suppress(OSError, UsageError):
        former = Path(run.read_launch().cwd)  # the directory as it was called when the attempt began
        if former.is_symlink() and former.samefile(run.path) and former != run.path:
            former.unlink()


class Renamed:
    """Watches the directory of one run.

    Attributes:
        path: where the directory is now; what leads to it where it has no name any more.
        cause: why the run must end; None while it has its name.
        can_save: whether the worker still reaches it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cause: str | None = None
        self.can_save = True
        self._named = path
        self._directory = KeptDirectory(path)
        self._link: Path | None = None

    def look(self) -> bool:
        """Whether it is elsewhere than at the last look."""
        found = self._directory.find()
        path = found or self._directory.handle
        if path == self.path:
            return False
        self.path = path
        self.remove_link()
        self.can_save = found is not None and self._lead_on(found)
        what = f"renamed to {found.name if found.parent == self._named.parent else found}" if found else "removed"
        self.cause = f"The run's directory {self._named} was {what} while it ran."
        return True

    @property
    def is_gone(self) -> bool:
        """Whether nothing can be recorded any more."""
        return self.path == self._directory.handle

    def stopped(self, outcome: Outcome) -> Outcome:
        """How the run ended, with the reason."""
        if outcome.phase == "finished":
            return outcome
        saved = outcome.phase == "stopped" and outcome.exit_code == ExitCode.STOPPED
        how = "It saved and stopped." if saved else "Its worker could not save and was ended."
        cause = f"{self.cause} {how} Resuming goes on from the last checkpoint."
        return msgspec.structs.replace(outcome, phase="stopped", cause=cause)

    def remove_link(self) -> None:
        """Nobody needs to be led on any more."""
        with contextlib.suppress(OSError):
            if self._link is not None and self._link.is_symlink():
                self._link.unlink()
        self._link = None

    def _lead_on(self, found: Path) -> bool:
        try:
            self._named.symlink_to(found)
        except OSError:  # there is something of that name, or its parent has gone
            return False
        self._link = self._named
        return True
