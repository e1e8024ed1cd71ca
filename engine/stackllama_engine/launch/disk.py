"""Room on the file system of a run: a warning while there is time, a stop while a last checkpoint still fits.

============================  =========================================  =========================================
environment                   default                                    meaning
============================  =========================================  =========================================
``STACKLLAMA_DISK_CRITICAL``  1.5 checkpoints, at least 64 MiB           MiB below which a run is saved and stopped;
                                                                         0: never
``STACKLLAMA_DISK_WARNING``   four times that, at least 1 GiB            MiB below which a remark says so
============================  =========================================  =========================================
"""

import errno
import os
from pathlib import Path

from msgspec import Struct

from ..contract.run_dir import RunDir
from .asking import Asker, UnansweredError
from .settings import setting

_FILE_SYSTEM = Asker("the file system")
_SECONDS = 2.0
_MIB = 1 << 20
_LEAST_CRITICAL = 64 * _MIB
_LEAST_WARNING = 1024 * _MIB
_CHECKPOINTS = 1.5
_WARNING = 4
_AGAIN = 1.25  # so much more than the limit must be free before it is warned of anew


class DiskNews(Struct, frozen=True):
    """What to tell."""

    message: str
    critical: bool


class DiskWatch:
    """Looks at the room that is left for a run."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._checkpoint = 0
        self._warned = self._ended = False
        self._told_unreadable = False
        self.measure_checkpoint()

    def measure_checkpoint(self) -> None:
        """Learn from the newest checkpoint how much the next one takes."""
        newest = max(self._run.checkpoints.glob("step-*"), key=lambda path: path.name, default=None)
        if newest is not None:
            self._checkpoint = max(self._checkpoint, _size(newest))

    @property
    def critical(self) -> int:
        """Bytes."""
        given = _mib("STACKLLAMA_DISK_CRITICAL")
        return max(_LEAST_CRITICAL, round(_CHECKPOINTS * self._checkpoint)) if given is None else given

    @property
    def warning(self) -> int:
        """Bytes."""
        given = _mib("STACKLLAMA_DISK_WARNING")
        return max(_LEAST_WARNING, _WARNING * self.critical) if given is None else given

    def look(self) -> DiskNews | None:
        """What is new since the last look."""
        try:
            free = free_bytes(self._run.path)
        except OSError as error:
            if self._told_unreadable:
                return None
            self._told_unreadable = True
            return DiskNews(f"How much room is left cannot be told: {error}.", critical=False)
        if free < self.critical and not self._ended:
            self._ended = True
            return DiskNews(
                f"The disk is nearly full: {free // _MIB} MiB are free where the runs are, and below "
                f"{self.critical // _MIB} MiB a checkpoint may no longer fit. Free some, then resume.",
                critical=True,
            )
        if free < self.warning and not self._warned:
            self._warned = True
            then = f"; below {self.critical // _MIB} MiB the run is saved and stopped" if self.critical else ""
            return DiskNews(f"Little room is left where the runs are: {free // _MIB} MiB{then}.", critical=False)
        self._warned = self._warned and free < _AGAIN * self.warning
        return None


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write on the file system of a path.

    Raises:
        OSError: it cannot be told.
    """
    try:
        found = _FILE_SYSTEM.answer(lambda: os.statvfs(path), _SECONDS)
    except UnansweredError as error:  # a mount whose server has gone
        raise OSError(errno.ETIMEDOUT, str(error)) from None
    return found.f_bavail * found.f_frsize


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # rotated away meanwhile
            continue
    return total


def _mib(name: str) -> int | None:
    given = setting(name)
    return None if given is None else round(given * _MIB)
