"""The ranks of an attempt as its supervisor sees them: pids, resident memory, and which of them ended first.

A rank that a signal kills writes no cause, and those that waited for it then fail with a connection error, the only
cause in the files. So the supervisor follows the ranks and when each ended. By which signal, only the parent learns,
which is `accelerate launch`: torchelastic prints its ranks' exit codes, and for one process our launcher ends with the
code that a shell would give (:mod:`..train.accelerate_cli`).
"""

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from math import inf
from pathlib import Path

import msgspec
from msgspec import Struct

from ..contract.run_dir import ProcessId
from .processes import arguments, children, environment_value, identify, usage

_SEARCH_SECONDS = 0.5  # between two searches for ranks that are still to come
_EXIT_CODE = re.compile(r"exitcode\s*: (-?\d{1,3})\)?(?: local_rank: \d+)? \(pid: (\d+)\)")
"""In torchelastic's log, once as it happens and once in its table."""
_SECONDARY = frozenset({signal.SIGTERM, signal.SIGABRT})
"""Signals by which a rank ends because another one has: torchelastic's, and NCCL's watchdog's."""
_TOLERANCE = 5.0
"""Seconds by which a death may be noticed later than what another rank wrote because of it."""


class Death(Struct, frozen=True, kw_only=True):
    """A rank that ended by a signal.

    Attributes:
        rank: its number; None: the only process of its run.
        host: the machine it was on.
        pid: its process id.
        number: the signal's; None: unknown.
        time: Unix seconds at which its end was noticed.
        held: resident bytes of all ranks of this host before the first of them ended.
    """

    rank: str | None
    host: str
    pid: int
    number: int | None
    time: float
    held: int

    @property
    def signal(self) -> str | None:
        """The signal's name."""
        return None if self.number is None else signal_name(self.number)

    def __str__(self) -> str:
        who = f"{'the worker' if self.rank is None else f'rank {self.rank}'} on {self.host}"
        return f"{who} was killed by {self.signal or 'an unknown signal'}"


class Ranks:
    """Follows the ranks of an attempt from poll to poll.

    Args:
        run: the run directory, which every rank has as an argument.
        expected: how many there will be.
        clock: Unix seconds.
    """

    def __init__(self, run: Path, expected: int, clock: Callable[[], float] = time.time) -> None:
        self._run = str(run)
        self._expected = expected
        self._clock = clock
        self._next = 0.0
        self._alive: dict[ProcessId, str | None] = {}
        self._descriptors: dict[ProcessId, int] = {}
        self._gone: list[Death] = []
        self._held = 0

    @property
    def descriptors(self) -> list[int]:
        """pidfds of the ranks that live: readable when one ends."""
        return list(self._descriptors.values())

    def poll(self, launcher: int) -> None:
        """Find the ranks below their launcher, and notice those that have ended."""
        now = self._clock()
        if len(self._alive) + len(self._gone) < self._expected and now >= self._next:
            self._next = now + _SEARCH_SECONDS
            self._find(launcher)
        held = 0
        for process, rank in list(self._alive.items()):
            used = usage(process)
            if used is not None:
                held += used.memory
                continue
            del self._alive[process]
            os.close(self._descriptors.pop(process))
            self._gone.append(
                Death(rank=rank, host=socket.gethostname(), pid=process.pid, number=None, time=now, held=self._held)
            )
        if held and not self._gone:
            self._held = held

    def first_killed(self, log: str, folder: Path, code: int) -> Death | None:
        """Return the rank whose death by a signal failed the attempt; None: a rank with an error of its own came first.

        Args:
            log: the end of the attempt's log.
            folder: the attempt's, in which ranks that failed by themselves left ``cause-rank-N.txt``.
            code: the launcher's exit code.
        """
        codes = {int(match[2]): int(match[1]) for match in _EXIT_CODE.finditer(log)}
        if self._expected == 1:
            codes = {death.pid: 128 - code if code > 128 else abs(code) for death in self._gone}
        causes = {
            path.stem.removeprefix("cause-rank-"): path.stat().st_mtime for path in folder.glob("cause-rank-*.txt")
        }
        killed: list[Death] = []
        failed = list(causes.values())  # Unix seconds
        for death in self._gone:
            number = codes.get(death.pid)
            if number is not None and number >= 0:
                failed += [death.time] if number else []
            elif death.rank not in causes:
                killed.append(msgspec.structs.replace(death, number=None if number is None else -number))
        # of those found ended at the same poll, the one that no other death explains
        first = min(killed, key=lambda death: (death.number in _SECONDARY, death.time), default=None)
        if first is None:
            return None
        late = 0.0 if first.number in _SECONDARY else _TOLERANCE
        return first if first.time <= min(failed, default=inf) + late else None

    def close(self) -> None:
        """Close the pidfds."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        self._alive.clear()

    def _find(self, launcher: int) -> None:
        known = {process.pid for process in self._alive} | {death.pid for death in self._gone}
        for pid in children(launcher):
            process = identify(pid) if pid not in known else None
            if process is None or self._run not in arguments(process):
                continue
            rank = environment_value(process, "RANK")
            if (rank is None) != (self._expected == 1):
                continue
            try:
                self._descriptors[process] = os.pidfd_open(pid)
            except ProcessLookupError:  # ended just now: its launcher reports why
                continue
            self._alive[process] = rank


def signal_name(number: int) -> str:
    """Return the name of a signal, ``SIGKILL`` for 9; a real-time signal has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
