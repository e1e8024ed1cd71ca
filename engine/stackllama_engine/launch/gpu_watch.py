"""Errors of the GPUs themselves while a run uses them, reported beside the run's own."""

import time
from collections.abc import Callable, Collection, Mapping

from msgspec import Struct

from ..contract.run_dir import Launch
from .nvml import NVML, Faults, GpuReading, Nvml, NvmlError, work_of
from .timeouts import Asked, UnansweredError

_RETRY_SECONDS = 30.0
_SECONDS = 1.0  # that the supervisor waits for NVML, once; it continues and takes the answer later
_SILENT_SECONDS = 30.0  # without an answer, after which a notice is written
_SAME_SECONDS = 600.0  # between two notices about one GPU being slowed for one reason
_POLLS = 2  # for which a GPU must be slowed: for a moment is ordinary
XIDS = {
    13: "graphics engine exception",
    31: "GPU memory page fault",
    43: "GPU stopped processing",
    45: "preemptive cleanup, due to previous errors",
    48: "double bit ECC error",
    63: "row remapping recording event",
    64: "row remapping recording failure",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    92: "high single-bit ECC error rate",
    94: "contained ECC error",
    95: "uncontained ECC error",
    119: "GSP RPC timeout",
    120: "GSP error",
}
"""NVIDIA's words: https://docs.nvidia.com/deploy/xid-errors/."""


class _Reading(Struct, frozen=True, kw_only=True):
    """NVML's answers at one moment."""

    xids: list[tuple[int, int]]
    gpus: list[GpuReading]


class GpuWatch:
    """Polls NVML for errors of a run's GPUs. Quiet on a machine without any.

    Args:
        cards: indices to watch; None: all.
        clock: monotonic seconds.

    Attributes:
        serious: the newest notice that can explain the end of a run; heat and power cannot.
        gpus: the newest readings of the watched GPUs; empty while there are none.
    """

    def __init__(self, cards: Collection[int] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.serious: str | None = None
        self.gpus: list[GpuReading] = []
        self._asked: Asked[_Reading] | None = None
        self._hangs = False
        self._work: dict[int, int] = {}
        self._cards = cards
        self._clock = clock
        self._nvml = Nvml(listen=True)
        self._absent = self._gone = False
        self._open_at = 0.0
        self._before: dict[int, Faults] = {}
        self._slowed: dict[tuple[int, str], int] = {}
        self._reported: dict[tuple[int, str], float] = {}

    def poll(self) -> list[str]:
        """Return the notices since the last poll, each a sentence."""
        self.gpus = []
        if self._absent or (self._asked is None and self._clock() < self._open_at):
            return []
        try:
            self._asked = self._asked or NVML.ask(self._read, _SECONDS)
            reading = self._asked.answer(_SECONDS)
        except UnansweredError as error:
            return self._hang(str(error))
        except NvmlError as error:
            return self._answered() + self._lost(str(error))
        again = self._answered()
        if self._gone:
            self._gone = False
            again.append("NVML works again: the GPUs are monitored.")
        self._work = work_of(reading.gpus)
        self.gpus = [gpu for gpu in reading.gpus if self._is_ours(gpu.index)]
        notices = [self._xid(*each) for each in reading.xids if self._is_ours(each[0])]
        for gpu in self.gpus:
            notices += self._compare(gpu.faults)
        return again + notices

    def work(self, pids: Collection[int]) -> Mapping[int, int]:
        """Return pid → utilization in percent of the GPU whose memory it holds; empty while NVML hangs."""
        return {} if self._asked is not None else {pid: self._work[pid] for pid in pids if pid in self._work}

    def holders(self) -> set[int] | None:
        """Return the pids that hold GPU memory now, as far as the driver reports; None where it hangs."""
        try:
            if self._asked is not None:
                self._asked.answer()
                self._asked = None
            return NVML.answer(self._nvml.holders, _SECONDS)
        except UnansweredError:
            return None
        except NvmlError:  # driver or GPU lost: nothing is known
            return set()

    def _read(self) -> _Reading:
        """Read everything that a poll needs; runs in a thread of its own."""
        if not self._nvml.is_open:
            self._nvml.open()
        return _Reading(xids=self._nvml.xids(), gpus=self._nvml.read())

    def _hang(self, error: str) -> list[str]:
        """Report, once, that NVML hangs."""
        if self._hangs or self._asked is None or self._asked.seconds < _SILENT_SECONDS:
            return []
        self._hangs = True
        self.serious = f"{error}: the GPU driver hangs; the GPUs are not monitored."
        return [self.serious]

    def _answered(self) -> list[str]:
        self._asked = None
        again, self._hangs = (["NVML answers again."] if self._hangs else []), False
        return again

    def _is_ours(self, index: int) -> bool:
        return self._cards is None or index in self._cards

    def _lost(self, error: str) -> list[str]:
        self._open_at = self._clock() + _RETRY_SECONDS
        if self._gone:
            return []
        if not self._before:  # never there: a machine without GPUs, or without a driver
            self._absent = True
            return []
        self._gone = True
        self.serious = f"NVML failed ({error}): a GPU is lost or the driver was unloaded; the GPUs are not monitored."
        return [self.serious]

    def _xid(self, index: int, number: int) -> str:
        self.serious = f"GPU {index}: Xid {number}" + (f", {XIDS[number]}." if number in XIDS else ".")
        return self.serious

    def _compare(self, now: Faults) -> list[str]:
        before = self._before.get(now.index, now)
        self._before[now.index] = now
        serious: list[str] = []
        if (now.uncorrected or 0) > (before.uncorrected or 0):
            count = (now.uncorrected or 0) - (before.uncorrected or 0)
            serious.append(f"GPU {now.index}: {count} new uncorrectable ECC {'error' if count == 1 else 'errors'}.")
        if (now.remapped or 0) > (before.remapped or 0):
            serious.append(f"GPU {now.index}: row remapping pending (needs a GPU reset).")
        if now.remap_failed and not before.remap_failed:
            serious.append(f"GPU {now.index}: row remapping failed, no spare rows left (the GPU must be replaced).")
        if serious:
            self.serious = serious[-1]
        return serious + self._throttled(now)

    def _throttled(self, now: Faults) -> list[str]:
        notices: list[str] = []
        for key in [key for key in self._slowed if key[0] == now.index and key[1] not in now.slowed]:
            del self._slowed[key]
        for reason in now.slowed:
            key = (now.index, reason)
            self._slowed[key] = self._slowed.get(key, 0) + 1
            due = self._clock() - self._reported.get(key, float("-inf")) >= _SAME_SECONDS
            if self._slowed[key] >= _POLLS and due:
                self._reported[key] = self._clock()
                notices.append(f"GPU {now.index}: clocks reduced, {reason}.")
        return notices


def watched_cards(launch: Launch) -> Collection[int] | None:
    """Return the indices of the GPUs a run may use; None: all, or not given as indices; empty: it is on the CPU."""
    if launch.environment.get("ACCELERATE_USE_CPU") == "true":
        return ()
    named = launch.environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return None
    parts = [part.strip() for part in named.split(",") if part.strip()]
    return [int(part) for part in parts] if all(part.isdecimal() for part in parts) else None
