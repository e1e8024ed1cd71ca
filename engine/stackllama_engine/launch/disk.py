"""Disk space of a run: a warning while there is time, and a stop after a save before the disk is full.

A run that holds a reserve for its last checkpoint (:class:`..contract.disk_space.Reserve`) handles a full disk itself:
it waits when a write fails, and saves and stops when that takes too long. One that trains without a reserve (its file
system cannot hold one) is told here to save and stop while a checkpoint still fits. No other run is: one that still
loads has nothing to save and may hold a reserve soon, and a pipeline's stages monitor the disk themselves.

============================  =========================================  =========================================
environment                   default                                    meaning
============================  =========================================  =========================================
``STACKLLAMA_DISK_CRITICAL``  without a reserve 1.5 checkpoints, at      MiB below which a run saves and stops;
                              least 64 MiB; with one, never              0: never
``STACKLLAMA_DISK_WARNING``   four times that, at least 1 GiB            MiB below which a notice is written
``STACKLLAMA_DISK_PATIENCE``  1800                                       seconds that a run waits for free space before
                                                                         it saves into its reserve and stops
============================  =========================================  =========================================

Free inodes are monitored likewise; their limits are fixed.
"""

import errno
import re
from pathlib import Path

from msgspec import Struct

from ..contract.disk_space import Free, Reserve, free, size_of
from ..contract.env_settings import setting
from ..contract.events import EventReader
from ..contract.history import fold
from ..contract.requests import WAITING_FOR_ROOM
from ..contract.run_dir import RunDir
from .attempt_outcome import last_log_lines
from .timeouts import Asker, UnansweredError

_FILE_SYSTEM = Asker("the file system")
_SECONDS = 2.0
_MIB = 1 << 20
_LEAST_CRITICAL = 64 * _MIB
_LEAST_WARNING = 1024 * _MIB
_CHECKPOINTS = 1.5
_WARNING = 4
_AGAIN = 1.25  # times the limit must be free before the next warning
_FILES_CRITICAL, _FILES_WARNING = 64, 1000
_FULL_DISK = re.compile(
    r"No space left on device|Disk quota exceeded|os error (28|122)\b|output were lost while the disk was full"
)


class DiskNotice(Struct, frozen=True):
    """A notice, and whether the run has to stop."""

    message: str
    critical: bool


class DiskWatch:
    """Monitors the disk space that is left for a run.

    Attributes:
        stops: whether too little space is a reason to stop it.
    """

    def __init__(self, run: RunDir, *, stops: bool = True) -> None:
        self.stops = stops
        self._run = run
        self._reserve = Reserve(run.path)
        self._checkpoint = 0
        self._warned = self._ended = self._left = False
        self._reported_unreadable = False
        self.measure_checkpoint()

    def measure_checkpoint(self) -> None:
        """Learn from the newest checkpoint how much space the next one takes."""
        newest = max(self._run.checkpoints.glob("step-*"), key=lambda path: path.name, default=None)
        if newest is not None:
            self._checkpoint = max(self._checkpoint, size_of(newest)[0])

    @property
    def critical(self) -> int:
        """Bytes below which the run saves and stops."""
        limit = _mib("STACKLLAMA_DISK_CRITICAL")
        return max(_LEAST_CRITICAL, round(_CHECKPOINTS * self._checkpoint)) if limit is None else limit

    @property
    def warning(self) -> int:
        """Bytes below which a notice is written."""
        limit = _mib("STACKLLAMA_DISK_WARNING")
        return max(_LEAST_WARNING, _WARNING * self.critical) if limit is None else limit

    def poll(self) -> DiskNotice | None:
        """Return what is new since the last poll."""
        try:
            now = free_room(self._run.path)
        except OSError as error:
            if self._reported_unreadable:
                return None
            self._reported_unreadable = True
            return DiskNotice(f"Free disk space cannot be read: {error}.", critical=False)
        if self._is_critical(now):
            if _mib("STACKLLAMA_DISK_CRITICAL") is None and (held := self._reserve.held):
                return self._reserve_notice(now, held)
            if self.stops and not self._ended:
                self._ended = True
                return DiskNotice(
                    f"The disk is nearly full: {self._free(now)} on the file system of the runs, and below "
                    f"{self._limit(now, self.critical, _FILES_CRITICAL)} a checkpoint may no longer fit. Free some "
                    "space, then resume.",
                    critical=True,
                )
        if self._is_little(now, 1.0) and not self._warned:
            self._warned = True
            then = (
                f"; below {self.critical // _MIB} MiB the run saves and stops" if self.stops and self.critical else ""
            )
            if _mib("STACKLLAMA_DISK_CRITICAL") is None and self._reserve.held:
                then = "; when a write fails, the run waits for free space"
            return DiskNotice(
                f"Disk space is low on the file system of the runs: {self._free(now)}{then}.", critical=False
            )
        self._warned = self._warned and self._is_little(now, _AGAIN)
        self._left = self._left and self._is_little(now, _AGAIN)
        return None

    def _reserve_notice(self, now: Free, held: int) -> DiskNotice | None:
        """Return a notice once, and again after there was enough space in between."""
        if self._left:
            return None
        self._left = self._warned = True
        return DiskNotice(
            f"The disk is nearly full: {self._free(now)} on the file system of the runs. When a write fails, the run "
            f"waits for free space; {max(held // _MIB, 1)} MiB are reserved for a last checkpoint.",
            critical=False,
        )

    def _is_critical(self, now: Free) -> bool:
        few = bool(self.critical) and now.inodes is not None and now.inodes < _FILES_CRITICAL
        return now.bytes < self.critical or few

    def _is_little(self, now: Free, factor: float) -> bool:
        few = now.inodes is not None and now.inodes < _FILES_WARNING * factor
        return now.bytes < self.warning * factor or few

    def _free(self, now: Free) -> str:
        return f"{now.bytes // _MIB} MiB free" if self._bytes_lack(now) else f"{now.inodes} inodes free"

    def _bytes_lack(self, now: Free) -> bool:
        return now.bytes < self.warning or now.inodes is None

    def _limit(self, now: Free, size: int, files: int) -> str:
        return f"{size // _MIB} MiB" if self._bytes_lack(now) else f"{files} inodes"


def full_disk(run: RunDir, folder: Path) -> str | None:
    """Return the evidence that a worker that ended without a cause met a full disk; None without any.

    Args:
        run: the run.
        folder: of its attempt.
    """
    try:
        now = free_room(run.path)
    except OSError:
        return None
    if now.is_full:
        return str(now)
    if any(_FULL_DISK.search(line) for line in last_log_lines(folder / "log.txt")):
        return f"its log reports it; now {now}"
    if fold(EventReader(folder / "events.jsonl").read_what_can_be()).phase == WAITING_FOR_ROOM:
        return f"it was waiting for disk space; now {now}"
    return None


def free_room(path: Path) -> Free:
    """Return what this user may still write on the file system of a path.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return _FILE_SYSTEM.answer(lambda: free(path), _SECONDS)
    except UnansweredError as error:  # a mount whose server has gone
        raise OSError(errno.ETIMEDOUT, str(error)) from None


def _mib(name: str) -> int | None:
    value = setting(name)
    return None if value is None else round(value * _MIB)
