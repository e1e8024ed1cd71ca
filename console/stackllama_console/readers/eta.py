"""Time left, from the pace of this attempt's own steps, with a range.

The newest `KEPT` progress records (time, step) part into intervals; interval i took dᵢ seconds per step over kᵢ steps.
Quartiles are weighted by the kᵢ::

    pause     an interval with dᵢ > 4 · median of all: the run evaluated or saved in it
    q₁ q₂ q₃  quartiles of the dᵢ without pauses
    p         Σ over pauses (dᵢ − q₂) · kᵢ / Σ over all kᵢ: what pauses add to a step, on average
    spread    1 + 1/n for n intervals: few of them say little about the range
    left      steps to do

    low     = left · q₁ / spread
    likely  = left · (q₂ + p, if there were two pauses or more)      one pause does not say that there will be others
    high    = left · (q₃ · spread + p)

From all three goes the time since the last step, yet at most one step's q₂: while a run stalls the estimate
stays the same. What it overran by beyond that is added to ``high``: what has taken so long may take as long again.

Time in which a run was paused, or waited for room on the disk, is no time of any step: :class:`Pace` leaves it out.
"""

from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from math import isfinite

from msgspec import Struct

from stackllama_engine.contract.requests import PAUSED, WAITING_FOR_ROOM

IDLE = frozenset({PAUSED, WAITING_FOR_ROOM})
"""Phases in which a run does nothing until it is told to continue."""
KEPT = 65
_PAUSE = 4.0


class Eta(Struct, frozen=True, kw_only=True):
    """Seconds until the last step is done, low ≤ likely ≤ high, and ``pace``, seconds per step without pauses."""

    low: float
    likely: float
    high: float
    pace: float


class Pace:
    """The progress of one attempt.

    Attributes:
        points: its newest (time, step) pairs, by a clock that stops in phases of :data:`IDLE`.
    """

    __slots__ = ("_idle", "_idle_since", "points")

    def __init__(self) -> None:
        self.points: deque[tuple[float, int]] = deque(maxlen=KEPT)
        self._idle = 0.0
        self._idle_since: float | None = None

    @property
    def is_idle(self) -> bool:
        """Whether the newest phase is one of :data:`IDLE`."""
        return self._idle_since is not None

    def enter(self, time: float, phase: str | None) -> None:
        """Record that a phase began."""
        if self._idle_since is not None:
            self._idle += max(0.0, time - self._idle_since)
        self._idle_since = time if phase in IDLE else None

    def clock(self, time: float) -> float:
        """Return a time by the clock of the points."""
        return (time if self._idle_since is None else min(time, self._idle_since)) - self._idle

    def add(self, time: float, step: int) -> None:
        """Record a finished step; one before the last, or a clock set back, restarts the estimate."""
        points, time = self.points, self.clock(time)
        if points:
            last_time, last_step = points[-1]
            if step == last_step:
                return  # said twice
            if step < last_step or time < last_time:
                points.clear()
        points.append((time, step))


def estimate(points: Iterable[tuple[float, int]], total_steps: int | None, now: float) -> Eta | None:
    """Return the time left at ``now``.

    Args:
        points: Unix seconds and the step that was done then, both ascending; of the newest attempt alone.
        total_steps: None: unknown.
        now: Unix seconds.

    Returns:
        None before two steps of this attempt are done, or without a total.
    """
    known = list(points)
    if len(known) < 2 or not total_steps or total_steps < 0:
        return None
    intervals = [((b[0] - a[0]) / (b[1] - a[1]), b[1] - a[1]) for a, b in pairwise(known)]
    longest = _PAUSE * _quantile(intervals, 0.5)
    ordinary = [interval for interval in intervals if interval[0] <= longest]
    low, pace, high = (_quantile(ordinary, part) for part in (0.25, 0.5, 0.75))
    pauses = [(duration - pace) * steps for duration, steps in intervals if duration > longest]
    recurring = sum(pauses) / sum(steps for _, steps in intervals)
    spread = 1 + 1 / len(intervals)
    left = max(0, total_steps - known[-1][1])
    since = max(0.0, now - known[-1][0])
    done = min(since, pace)
    eta = Eta(
        low=max(0.0, left * low / spread - done),
        likely=max(0.0, left * (pace + recurring * (len(pauses) > 1)) - done),
        high=max(0.0, left * (high * spread + recurring) - done + (since - done)),
        pace=pace,
    )
    if not left:
        return Eta(low=0.0, likely=0.0, high=0.0, pace=pace)
    return eta if isfinite(eta.high) and isfinite(eta.likely) else None


def _quantile(intervals: list[tuple[float, int]], part: float) -> float:
    """Return the duration that this part of all steps does not exceed; between two neighbours their mean."""
    ordered = sorted(intervals)
    wanted = part * sum(steps for _, steps in ordered)
    reached = 0.0
    for index, (duration, steps) in enumerate(ordered):
        reached += steps
        if reached == wanted and index + 1 < len(ordered):
            return (duration + ordered[index + 1][0]) / 2
        if reached >= wanted:
            return duration
    return ordered[-1][0]
