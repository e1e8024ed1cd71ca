"""Room on the file system of a run: a warning while there is time, and what stands between the run and a full disk.

A run that holds a reserve for its last checkpoint (:class:`..contract.disk_space.Reserve`) is left to itself: it waits
when something cannot be written, and is saved and stopped when that takes too long. One that holds none though it
trains (its file system cannot do that) is saved and stopped here while a checkpoint still fits. Nothing else is: a run
that still loads has nothing to save and may hold a reserve in a moment, and a pipeline's stages look for themselves.

============================  =========================================  =========================================
environment                   default                                    meaning
============================  =========================================  =========================================
``STACKLLAMA_DISK_CRITICAL``  without a reserve 1.5 checkpoints, at      MiB below which a run is saved and stopped;
                              least 64 MiB; with one, never              0: never
``STACKLLAMA_DISK_WARNING``   four times that, at least 1 GiB            MiB below which a remark says so
``STACKLLAMA_DISK_PATIENCE``  1800                                       seconds that a run waits for room before it is
                                                                         saved into its reserve and stopped
============================  =========================================  =========================================

Files that can still be made (inodes) are looked at alike; their limits are fixed.
"""

import errno
import re
from pathlib import Path

from msgspec import Struct

from ..contract.disk_space import Free, Reserve, free, size_of
from ..contract.events import EventReader
from ..contract.history import fold
from ..contract.requests import WAITING_FOR_ROOM
from ..contract.run_dir import RunDir
from .attempt_outcome import last_log_lines
from .env_settings import setting
from .timeouts import Asker, UnansweredError

_FILE_SYSTEM = Asker("the file system")
_SECONDS = 2.0
_MIB = 1 << 20
_LEAST_CRITICAL = 64 * _MIB
_LEAST_WARNING = 1024 * _MIB
_CHECKPOINTS = 1.5
_WARNING = 4
_AGAIN = 1.25  # so much more than the limit must be free before it is warned of anew
_FILES_CRITICAL, _FILES_WARNING = 64, 1000
_SIGNS = re.compile(
    r"No space left on device|Disk quota exceeded|os error (28|122)\b|output were lost while the disk was full"
)


class DiskNews(Struct, frozen=True):
    """What to tell."""

    message: str
    critical: bool


class DiskWatch:
    """Looks at the room that is left for a run.

    Attributes:
        stops: whether too little room is a reason to stop it.
    """

    def __init__(self, run: RunDir, *, stops: bool = True) -> None:
        self.stops = stops
        self._run = run
        self._reserve = Reserve(run.path)
        self._checkpoint = 0
        self._warned = self._ended = self._left = False
        self._told_unreadable = False
        self.measure_checkpoint()

    def measure_checkpoint(self) -> None:
        """Learn from the newest checkpoint how much the next one takes."""
        newest = max(self._run.checkpoints.glob("step-*"), key=lambda path: path.name, default=None)
        if newest is not None:
            self._checkpoint = max(self._checkpoint, size_of(newest)[0])

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
            now = free_room(self._run.path)
        except OSError as error:
            if self._told_unreadable:
                return None
            self._told_unreadable = True
            return DiskNews(f"How much room is left cannot be told: {error}.", critical=False)
        if self._is_critical(now):
            if _mib("STACKLLAMA_DISK_CRITICAL") is None and (held := self._reserve.held):
                return self._leave_to_the_run(now, held)
            if self.stops and not self._ended:
                self._ended = True
                return DiskNews(
                    f"The disk is nearly full: {self._of(now)} where the runs are, and below "
                    f"{self._limit(now, self.critical, _FILES_CRITICAL)} a checkpoint may no longer fit. Free some, "
                    "then resume.",
                    critical=True,
                )
        if self._is_little(now, 1.0) and not self._warned:
            self._warned = True
            then = (
                f"; below {self.critical // _MIB} MiB the run is saved and stopped"
                if self.stops and self.critical
                else ""
            )
            if _mib("STACKLLAMA_DISK_CRITICAL") is None and self._reserve.held:
                then = "; when nothing more can be written the run waits"
            return DiskNews(f"Little room is left where the runs are: {self._left_of(now)}{then}.", critical=False)
        self._warned = self._warned and self._is_little(now, _AGAIN)
        self._left = self._left and self._is_little(now, _AGAIN)
        return None

    def _leave_to_the_run(self, now: Free, held: int) -> DiskNews | None:
        """Said once, and again after there was enough in between."""
        if self._left:
            return None
        self._left = self._warned = True
        return DiskNews(
            f"The disk is nearly full: {self._of(now)} where the runs are. When something cannot be written the run "
            f"waits for room; {max(held // _MIB, 1)} MiB are held back for a last checkpoint.",
            critical=False,
        )

    def _is_critical(self, now: Free) -> bool:
        few = bool(self.critical) and now.inodes is not None and now.inodes < _FILES_CRITICAL
        return now.bytes < self.critical or few

    def _is_little(self, now: Free, factor: float) -> bool:
        few = now.inodes is not None and now.inodes < _FILES_WARNING * factor
        return now.bytes < self.warning * factor or few

    def _of(self, now: Free) -> str:
        return f"{self._left_of(now)} are free" if self._bytes_lack(now) else f"{now.inodes} more files can be made"

    def _left_of(self, now: Free) -> str:
        return f"{now.bytes // _MIB} MiB" if self._bytes_lack(now) else f"{now.inodes} more files can be made"

    def _bytes_lack(self, now: Free) -> bool:
        return now.bytes < self.warning or now.inodes is None

    def _limit(self, now: Free, size: int, files: int) -> str:
        return f"{size // _MIB} MiB" if self._bytes_lack(now) else f"{files} files"


def full_disk(run: RunDir, folder: Path) -> str | None:
    """What shows that a run whose worker ended without a word met a full disk; None: nothing does.

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
    if any(_SIGNS.search(line) for line in last_log_lines(folder / "log.txt")):
        return f"its log says so; now {now}"
    if fold(EventReader(folder / "events.jsonl").read_what_can_be()).phase == WAITING_FOR_ROOM:
        return f"it waited for room; now {now}"
    return None


def free_room(path: Path) -> Free:
    """What this user may still write on the file system of a path.

    Raises:
        OSError: it cannot be told.
    """
    try:
        return _FILE_SYSTEM.answer(lambda: free(path), _SECONDS)
    except UnansweredError as error:  # a mount whose server has gone
        raise OSError(errno.ETIMEDOUT, str(error)) from None


def _mib(name: str) -> int | None:
    given = setting(name)
    return None if given is None else round(given * _MIB)
