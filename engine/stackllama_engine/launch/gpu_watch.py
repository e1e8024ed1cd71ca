"""Trouble of the GPUs themselves while a run uses them: told beside the run, and never as its fault."""

import time
from collections.abc import Callable, Collection, Mapping

from msgspec import Struct

from ..contract.run_dir import Launch
from .nvml import NVML, Faults, Nvml, NvmlError
from .timeouts import Asked, UnansweredError

_RETRY_SECONDS = 30.0
_SECONDS = 1.0  # that the supervisor waits for NVML, once; it goes on and finds the answer later
_SILENT_SECONDS = 30.0  # without an answer, that are worth a word
_SAME_SECONDS = 600.0  # between two remarks about one card being slowed for one reason
_LOOKS = 2  # that a card must be slowed for: for a moment is ordinary
_XIDS = {
    13: "an illegal access or instruction of a program",
    31: "a program's access to memory that is not its own",
    43: "a program's channel was shut down",
    45: "a program was ended by the driver",
    48: "an ECC error that could not be corrected",
    63: "a row of memory is to be replaced",
    64: "a row of memory could not be replaced",
    74: "an error of NVLink",
    79: "the card has fallen off the bus",
    92: "many ECC errors that were corrected",
    94: "an ECC error that one program paid for",
    95: "an ECC error that every program paid for",
    119: "the card's own processor does not answer",
    120: "an error of the card's own processor",
}
"""In our words; the list: https://docs.nvidia.com/deploy/xid-errors/."""


class _Seen(Struct, frozen=True, kw_only=True):
    """NVML's answers at one moment."""

    xids: list[tuple[int, int]]
    faults: list[Faults]
    work: dict[int, int]


class GpuWatch:
    """Asks NVML about the GPUs of a run. Quiet on a machine without any.

    Args:
        cards: indices to watch; None: all.
        clock: monotonic seconds.

    Attributes:
        serious: the newest remark that can explain the end of a run; heat and power cannot.
    """

    def __init__(self, cards: Collection[int] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.serious: str | None = None
        self._asked: Asked[_Seen] | None = None
        self._hangs = False
        self._work: dict[int, int] = {}
        self._cards = cards
        self._clock = clock
        self._nvml = Nvml(listen=True)
        self._absent = self._gone = False
        self._open_at = 0.0
        self._before: dict[int, Faults] = {}
        self._slowed: dict[tuple[int, str], int] = {}
        self._told: dict[tuple[int, str], float] = {}

    def look(self) -> list[str]:
        """Remarks since the last look, each a sentence."""
        if self._absent or (self._asked is None and self._clock() < self._open_at):
            return []
        try:
            self._asked = self._asked or NVML.ask(self._see, _SECONDS)
            seen = self._asked.answer(_SECONDS)
        except UnansweredError as error:
            return self._hang(str(error))
        except NvmlError as error:
            return self._answers() + self._lost(str(error))
        again = self._answers()
        if self._gone:
            self._gone = False
            again.append("The GPUs can be asked again.")
        self._work = seen.work
        told = [self._xid(*each) for each in seen.xids if self._is_ours(each[0])]
        for faults in seen.faults:
            if self._is_ours(faults.index):
                told += self._compare(faults)
        return again + told

    def work(self, pids: Collection[int]) -> Mapping[int, int]:
        """Pid → per cent that the GPU is at work whose memory it holds, at the last look; none while NVML hangs."""
        return {} if self._asked is not None else {pid: self._work[pid] for pid in pids if pid in self._work}

    def holders(self) -> set[int] | None:
        """Pids that hold GPU memory now, as far as the driver tells; None where it does not answer."""
        try:
            if self._asked is not None:
                self._asked.answer()
                self._asked = None
            return set(NVML.answer(self._nvml.work, _SECONDS))
        except UnansweredError:
            return None
        except NvmlError:  # gone: nothing can be said of it
            return set()

    def _see(self) -> "_Seen":
        """Everything that a look needs, in one go; in a thread of its own."""
        if not self._nvml.is_open:
            self._nvml.open()
        return _Seen(xids=self._nvml.xids(), faults=self._nvml.faults(), work=self._nvml.work())

    def _hang(self, error: str) -> list[str]:
        """No answer yet: worth a word when it takes long, once."""
        if self._hangs or self._asked is None or self._asked.seconds < _SILENT_SECONDS:
            return []
        self._hangs = True
        self.serious = f"{error}: the GPUs' driver hangs, and they are not watched."
        return [self.serious]

    def _answers(self) -> list[str]:
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
        self.serious = f"The GPUs can no longer be asked ({error}): the driver or a card has gone."
        return [self.serious]

    def _xid(self, index: int, number: int) -> str:
        self.serious = f"GPU {index} reported Xid {number}" + (f": {_XIDS[number]}." if number in _XIDS else ".")
        return self.serious

    def _compare(self, now: Faults) -> list[str]:
        before = self._before.get(now.index, now)
        self._before[now.index] = now
        serious: list[str] = []
        if (now.uncorrected or 0) > (before.uncorrected or 0):
            count = (now.uncorrected or 0) - (before.uncorrected or 0)
            serious.append(f"GPU {now.index} counted {count} more ECC errors that could not be corrected.")
        if (now.remapped or 0) > (before.remapped or 0):
            serious.append(f"GPU {now.index} is to replace a row of its memory after an error, at its next reset.")
        if now.remap_failed and not before.remap_failed:
            serious.append(f"GPU {now.index} has no row of memory left to replace a broken one with.")
        if serious:
            self.serious = serious[-1]
        return serious + self._held_down(now)

    def _held_down(self, now: Faults) -> list[str]:
        told: list[str] = []
        for key in [key for key in self._slowed if key[0] == now.index and key[1] not in now.slowed]:
            del self._slowed[key]
        for reason in now.slowed:
            key = (now.index, reason)
            self._slowed[key] = self._slowed.get(key, 0) + 1
            due = self._clock() - self._told.get(key, float("-inf")) >= _SAME_SECONDS
            if self._slowed[key] >= _LOOKS and due:
                self._told[key] = self._clock()
                told.append(f"GPU {now.index} is slowed down: {reason}.")
        return told


def watched_cards(launch: Launch) -> Collection[int] | None:
    """Indices of the cards a run may use; None: all, or named in another way; empty: it is on the CPU."""
    if launch.environment.get("ACCELERATE_USE_CPU") == "true":
        return ()
    named = launch.environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return None
    parts = [part.strip() for part in named.split(",") if part.strip()]
    return [int(part) for part in parts] if all(part.isdecimal() for part in parts) else None
