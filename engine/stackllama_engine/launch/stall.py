"""Stall detection: no event for much longer than a step takes, and an idle rank.

=======================================  =======  ==============================================================
environment                              default  meaning
=======================================  =======  ==============================================================
``STACKLLAMA_STALL_FACTOR``              10       limit without an event, in median step times
``STACKLLAMA_STALL_FLOOR``               120      seconds; minimum of the limit
``STACKLLAMA_STALL_CEILING``             1800     seconds; maximum of the limit
``STACKLLAMA_STALL_LOAD``                1800     seconds; the limit before a step time is known
=======================================  =======  ==============================================================

The limit applies where a rank is stopped by a signal, or all are idle. Where some are busy and others wait for them
(rank 0 saves) the ceiling applies. A run whose ranks are all busy, or that has not begun to step (rank 0 prepares
data), may be silent for twice the ceiling: an evaluation or a rollout takes long, but ranks that spin in a collective
whose link was cut do so forever.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence

from msgspec import Struct

from ..contract.env_settings import setting
from ..contract.events import Event
from ..contract.requests import PAUSED, WAITING_FOR_ROOM
from .activity import Idle

_STEPS = 50
_BUSY = 2.0
_QUIET_PHASES = frozenset({PAUSED, WAITING_FOR_ROOM})  # it waits for a person


class StallLimits(Struct, frozen=True, kw_only=True):
    """Limits in seconds, except the factor; see the module."""

    factor: float = 10.0
    floor: float = 120.0
    ceiling: float = 1800.0
    load: float = 1800.0

    @classmethod
    def of_environment(cls) -> "StallLimits":
        """Read the environment."""
        settings = {name: setting(f"STACKLLAMA_STALL_{name.upper()}") for name in cls.__struct_fields__}
        return cls(**{name: value for name, value in settings.items() if value is not None})


class StallWatch:
    """Takes every event, and tells when there were none for too long.

    Args:
        limits: how long is too long.
        clock: monotonic seconds.
    """

    def __init__(self, limits: StallLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._last_event = clock()
        self._phase: str | None = None
        self._step: tuple[int, float] | None = None
        self._durations: deque[float] = deque(maxlen=_STEPS)

    @property
    def limit(self) -> float:
        """Seconds without an event that are too many while a rank is idle."""
        if not self._durations:
            return self._limits.load
        limit = self._limits.factor * statistics.median(self._durations)
        return min(max(limit, self._limits.floor), self._limits.ceiling)

    def event(self, event: Event) -> None:
        """Take an event of the run."""
        self._last_event = self._clock()
        if event.kind == "phase":
            if event.phase in _QUIET_PHASES or self._phase in _QUIET_PHASES:
                self._step = None  # the wait is no part of a step
            self._phase = event.phase
        if event.kind == "progress" and event.step is not None:
            if self._step is not None and event.step > self._step[0]:
                self._durations.append((event.time - self._step[1]) / (event.step - self._step[0]))
            self._step = event.step, event.time

    def poll(self, idle: Sequence[Idle], ranks: int = 1) -> str | None:
        """Return why the run counts as stalled, in a sentence; None while it does not.

        Args:
            idle: the idle ranks, the longest first.
            ranks: how many there are.
        """
        silent = self._clock() - self._last_event
        if self._phase in _QUIET_PHASES or silent < self.limit:
            return None
        long = [one for one in idle if one.seconds >= self.limit]
        still = [one for one in long if one.stopped] or (long if len(long) >= ranks else [])
        if still:
            return f"no event for {silent:.0f} s ({self._limit_words()}), and {still[0]}."
        ceiling = max(self._limits.ceiling, self.limit)
        if self._durations and long and min(silent, long[0].seconds) >= ceiling:
            return f"no event for {silent:.0f} s (limit {ceiling:.0f} s while other ranks are busy), and {long[0]}."
        busy = max(_BUSY * self._limits.ceiling, self.limit)
        if silent >= busy:
            return f"no event for {silent:.0f} s (limit {busy:.0f} s), although ranks are busy."
        return None

    def _limit_words(self) -> str:
        if not self._durations:
            return f"limit {self.limit:.0f} s before the first step"
        return f"limit {self.limit:.0f} s, the median step takes {statistics.median(self._durations):.2g} s"
