"""A run directory that is renamed, replaced or removed while the run trains in it.

The supervisor finds the directory again; the worker knows its path only, and would write into whatever is there now. If
the path is free, a symbolic link redirects the worker for as long as it takes to save and stop (no run of that name is
listed: a link is no run). If it is taken, or the directory is gone, nothing can be saved and nothing may be written:
the worker is killed.
"""

import contextlib
from pathlib import Path

import msgspec

from ..contract.errors import ExitCode, UsageError
from ..contract.run_dir import RunDir
from .attempt_outcome import Outcome
from .kept_directory import KeptDirectory


def remove_leftover_link(run: RunDir) -> None:
    """Remove the link of a supervisor that was killed meanwhile: it would keep the run's former name taken."""
    with contextlib.suppress(OSError, UsageError):
        former = Path(run.read_launch().cwd)  # the directory as it was called when the attempt began
        if former.is_symlink() and former.samefile(run.path) and former != run.path:
            former.unlink()


class MovedDirectory:
    """Watches the directory of one run.

    Attributes:
        path: where the directory is now; a path by its descriptor once it has no name any more.
        cause: why the run must end; None while it has its name.
        can_save: whether the worker still reaches it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cause: str | None = None
        self.can_save = True
        self._original = path
        self._directory = KeptDirectory(path)
        self._link: Path | None = None

    def poll(self) -> bool:
        """Return whether it is elsewhere than at the last poll."""
        new_path = self._directory.find()
        path = new_path or self._directory.handle
        if path == self.path:
            return False
        self.path = path
        self.remove_link()
        self.can_save = new_path is not None and self._redirect(new_path)
        what = "removed"
        if new_path is not None:
            what = f"renamed to {new_path.name if new_path.parent == self._original.parent else new_path}"
        self.cause = f"The run's directory {self._original} was {what} while it ran."
        return True

    @property
    def is_gone(self) -> bool:
        """Whether nothing can be recorded any more."""
        return self.path == self._directory.handle

    def stopped(self, outcome: Outcome) -> Outcome:
        """Return how the run ended, with the reason."""
        if outcome.phase == "finished":
            return outcome
        saved = outcome.phase == "stopped" and outcome.exit_code == ExitCode.STOPPED
        how = "It saved and stopped." if saved else "Its worker could not save and was killed."
        cause = f"{self.cause} {how} Resuming continues from the last checkpoint."
        return msgspec.structs.replace(outcome, phase="stopped", cause=cause)

    def remove_link(self) -> None:
        """Remove the link that redirected the worker."""
        with contextlib.suppress(OSError):
            if self._link is not None and self._link.is_symlink():
                self._link.unlink()
        self._link = None

    def _redirect(self, new_path: Path) -> bool:
        try:
            self._original.symlink_to(new_path)
        except OSError:  # there is something of that name, or its parent has gone
            return False
        self._link = self._original
        return True
