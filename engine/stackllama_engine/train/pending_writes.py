"""Writes that a full disk refused, on rank 0, and the room that is held back for the last checkpoint.

Nothing that cannot be written ends a run. What is small (samples, ``restart.json``, trackers' metrics) waits in memory
and is tried again at each step boundary; as long as any of it waits, or a checkpoint finds no room, the run waits
(:mod:`.disk_wait`). A reserve as large as a checkpoint lies in the run's directory all the while, so that a run on a
full disk can be saved and stopped whatever else fills it.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..contract.disk_space import MIB, Reserve, free, is_full, mib, size_of
from ..contract.events import EventWriter
from ..contract.run_dir import RunDir

if TYPE_CHECKING:
    from torch import nn

_WAITING_BYTES = 64 << 20  # of what waits in memory
_LEAST = 1 * MIB  # held from the start: a cause, a result
_FEW = 16  # files
_MOMENTS = 8  # bytes a trained parameter: AdamW's two in float32, more than other optimizers keep
_MARGIN = 0.05
_LONGEST = 60.0  # seconds between two tries
_FREE_CHECKPOINTS = 2  # checkpoints' worth of free space below which people are told


class _Later(NamedTuple):
    what: str
    write: Callable[[], object]
    size: int


class PendingWrites:
    """Pending writes and reserved room of a run; only rank 0 calls it.

    Args:
        run: the run directory.
        events: this attempt's; None on other ranks.

    Attributes:
        lost: number of writes given up because too much waited.
        since: monotonic seconds since when something waits; None: nothing does.
    """

    def __init__(self, run: RunDir, events: EventWriter | None) -> None:
        self.lost = 0
        self.since: float | None = None
        self._refusals = 0  # of one checkpoint
        self._again = 0.0  # monotonic seconds, until when it is not tried again
        self._run = run
        self._events = events
        self._later: deque[_Later] = deque()
        self._reserve = Reserve(run.path)
        self._bytes, self._files = _LEAST, _FEW  # of a checkpoint
        self._held = (0, 0)
        self._released = False
        self._warned = set[str]()  # conditions that people were told of, while they last

    # what waits

    def write(self, what: str, write: Callable[[], object], size: int = 0) -> bool:
        """Write now or, on a full disk, later, in the order of the calls.

        Args:
            what: what is written, in a word.
            write: may be called again; must leave nothing behind when it fails.
            size: bytes of memory that it keeps meanwhile.

        Returns:
            whether it is written.

        Raises:
            OSError: it cannot be written for another reason than the disk's.
        """
        self._later.append(_Later(what, write, size))
        self._write_waiting()
        while sum(one.size for one in self._later) > _WAITING_BYTES:
            self._later.popleft()
            self.lost += 1
        return not self._later

    @property
    def waits(self) -> bool:
        """Whether any small write is pending."""
        return bool(self._later) or (self._events is not None and self._events.waits)

    def refused(self) -> None:
        """Record that a checkpoint found no room.

        It is tried again as soon as there seems to be some; if there is not (a quota, which a file system does not
        report), after ever longer waits.
        """
        self.since = self.since or time.monotonic()
        self._refusals += 1
        self._again = time.monotonic() + (min(2.0**self._refusals, _LONGEST) if self._refusals > 1 else 0.0)

    def poll(self) -> str | None:
        """Try again; return why the run has to keep waiting: ``3 MiB free of the 12 MiB a checkpoint needs``."""
        self._write_waiting()
        if self._events is not None:
            self._events.write_waiting()
        try:
            now = free(self._run.path)
        except OSError as error:
            return f"free space cannot be determined ({error.strerror})"
        size, files = self._checkpoint()
        if not now.holds(size, files):
            return now.against(size, files)
        if self.waits or time.monotonic() < self._again:
            return f"{now}, but writing still fails"
        return None

    def _write_waiting(self) -> None:
        while self._later:
            try:
                self._later[0].write()
            except Exception as error:  # libraries report a full disk in classes of their own
                if not is_disk_full(error):
                    self._later.popleft()
                    raise
                return
            self._later.popleft()

    # the reserve

    def hold_least(self) -> None:
        """Hold back room for a cause or a result until a checkpoint's size is known; keep more if a restart left it."""
        if (held := self._reserve.held) < _LEAST:
            self._hold(_LEAST, _FEW)
        else:
            self._held = (held, _FEW)

    def expect(self, written: Path, model: "nn.Module", *, whole: bool) -> str | None:
        """Hold back room for a checkpoint, whose size a trial save tells.

        Args:
            written: what the trial save wrote.
            model: with what is trained marked as such.
            whole: of its weights only first rows were written.

        Returns:
            a notice for people where no room can be held.
        """
        size, files = size_of(written)
        size += sum(_MOMENTS * parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        if whole:
            size += _bytes(model.parameters())
        return self._once("reserve", self._take(size, files + _FEW))

    def measure(self, checkpoint: Path) -> str | None:
        """Hold back as much room as the checkpoint takes that has just been written.

        Returns:
            a notice for people where no room can be held, once until it can.
        """
        self._refusals, self.since = 0, None
        size, files = size_of(checkpoint)
        return self._once("reserve", self._take(size, files + _FEW))

    def shortage(self, checkpoint: Path) -> str | None:
        """Return a notice where little room is left besides the reserve, once until there is enough again.

        Args:
            checkpoint: the newest, as large as the next will be.
        """
        return self._once("shortage", self._shortage(size_of(checkpoint)[0]))

    def _shortage(self, size: int) -> str | None:
        try:
            now = free(self._run.path)
        except OSError:
            return None
        if now.bytes >= _FREE_CHECKPOINTS * size:
            return None
        return (
            f"the disk has {mib(now.bytes)} free, less than {_FREE_CHECKPOINTS} checkpoints of {mib(size)}: make room "
            f"under {self._run.path}"
        )

    def _once(self, condition: str, notice: str | None) -> str | None:
        if notice is None:
            self._warned.discard(condition)
            return None
        repeated = condition in self._warned
        self._warned.add(condition)
        return None if repeated else notice

    def release(self) -> None:
        """Give the reserve back, for the last checkpoint or the last words."""
        self._released = True
        self._held = (0, 0)
        self._reserve.release()

    def _checkpoint(self) -> tuple[int, int]:
        return self._bytes + max(round(_MARGIN * self._bytes), 1 * MIB), self._files

    def _take(self, size: int, files: int) -> str | None:
        self._bytes, self._files = size, files
        size, files = self._checkpoint()
        if self._released or (self._held[0] >= size and self._held[1] >= files and self._held[0] < 2 * size):
            return None
        try:
            now = free(self._run.path)
        except OSError:
            return None
        if not now.holds(2 * size - self._held[0], 2 * files - self._held[1]):  # nothing would be left to write it to
            return (
                f"no room is held back for a last checkpoint: that takes {mib(size)} and leaves none for the first "
                f"({now}). Make room under {self._run.path}: when the disk is full, the steps since a checkpoint may "
                "be lost"
            )
        if self._hold(size, files):
            return None
        return (
            f"the file system of {self._run.path} cannot hold back room for a last checkpoint: when the disk is full, "
            "the steps since a checkpoint may be lost"
        )

    def _hold(self, size: int, files: int) -> bool:
        try:
            held = self._reserve.hold(size, files)
        except OSError:  # no room after all, or a directory that takes no more files
            held = False
        self._held = (size, files) if held else (0, 0)
        return held


# safetensors, tokenizers and torch.save report a write that found no room as errors of their own
_SIGNS = (
    "No space left on device",
    "os error 28",
    "Disk quota exceeded",
    "os error 122",
    "failed writing file",
    "unexpected pos",  # torch.save, which continues after a failed write and checks its position
)


def is_disk_full(error: BaseException) -> bool:
    """Return whether a write failed for lack of room."""
    return is_full(error) or any(sign in str(error) for sign in _SIGNS)


def _bytes(parameters: "Iterable[nn.Parameter]") -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)
