"""Shutdown of a worker: how long it is given to stop by itself, and which signal comes next.

::

    stop requested      ── grace ──►  SIGTERM  ── term ──►  SIGKILL    (``control/stop``, or SIGTERM to the supervisor)
    worker gone, no end             ► SIGTERM  ── term ──►  SIGKILL    (its processes may outlive `accelerate launch`)
    worker gone, end written                                SIGKILL
    end written, worker not gone    ── linger ───────────►  SIGKILL    (hangs while it exits)

``STACKLLAMA_STOP_GRACE``, ``STACKLLAMA_TERM_GRACE`` and ``STACKLLAMA_LINGER`` (seconds) set the three; the first two
are never shorter than three times the longest save of the attempt.
"""

import signal
from math import inf

import msgspec
from msgspec import Struct

from ..contract.env_settings import setting
from ..contract.stages import Stage

_SAVES = 3  # a grace is at least so many times the longest save
_LONGEST_GRACE = 1800.0  # seconds that a run's own saves may ask for
_UNKILLABLE = 10.0  # seconds after which a process that survives SIGKILL is reported


class Patience(Struct, frozen=True, kw_only=True):
    """Seconds that a worker is given; see the module."""

    stop: float = 120.0
    term: float = 30.0
    linger: float = 60.0

    @classmethod
    def of(cls, stage: Stage) -> "Patience":
        """Read the environment. A pipeline waits for the supervisor of its child, which waits for its worker."""
        names = {"stop": "STACKLLAMA_STOP_GRACE", "term": "STACKLLAMA_TERM_GRACE", "linger": "STACKLLAMA_LINGER"}
        settings = {field: setting(name) for field, name in names.items()}
        patience = cls(**{field: value for field, value in settings.items() if value is not None})
        if stage is Stage.PIPELINE:
            return msgspec.structs.replace(patience, stop=2 * (patience.stop + patience.term))
        return patience


class Shutdown:
    """Deadlines for the processes of one attempt, in monotonic seconds.

    Args:
        patience: how long the worker is given.

    Attributes:
        longest_save: seconds that the longest save of the attempt took so far.
    """

    def __init__(self, patience: Patience) -> None:
        self.longest_save = 0.0
        self._patience = patience
        self._term_at = self._kill_at = inf

    def save_took(self, seconds: float) -> None:
        """Remember how long a save of this run takes."""
        self.longest_save = max(self.longest_save, seconds)

    def grace(self, least: float) -> float:
        """Return seconds that are long enough for a save as this run has shown to need."""
        return max(least, min(_SAVES * self.longest_save, _LONGEST_GRACE))

    def stop(self, now: float) -> None:
        """Begin with a request: the worker saves and stops by itself."""
        self._term_at = min(self._term_at, now + self.grace(self._patience.stop))
        self._kill_at = min(self._kill_at, self._term_at + self.grace(self._patience.term))

    def terminate(self, now: float) -> None:
        """Begin with SIGTERM: the request could not be written."""
        self._term_at = now

    def kill(self, now: float) -> None:
        """Begin with SIGKILL: nothing may be written any more."""
        self._term_at = self._kill_at = now

    def worker_gone(self, now: float, *, end_written: bool) -> None:
        """End what outlives the worker, gently where it did not write its ``end`` event."""
        self._term_at = min(self._term_at, now)
        self._kill_at = min(self._kill_at, now if end_written else now + self.grace(self._patience.term))

    def end_written(self, now: float) -> None:
        """Let the worker exit by itself, for a while."""
        self._kill_at = min(self._kill_at, now + self._patience.linger)

    def due(self, now: float) -> signal.Signals | None:
        """Return the signal that is due."""
        if now >= self._kill_at:
            return signal.SIGKILL
        return signal.SIGTERM if now >= self._term_at else None

    def is_overdue(self, now: float) -> bool:
        """Return whether SIGKILL has been due for so long that it does not work."""
        return now >= self._kill_at + _UNKILLABLE
