"""The metrics that health rules read: of a run's first steps, and of its newest ones."""

import math
from collections import deque
from collections.abc import Mapping

from msgspec import Struct

EARLY = 5
"""First steps of a run, which later ones are compared with."""
_KEPT = 40
"""Newest steps that are kept; no rule looks further back."""

Metrics = Mapping[str, float | None]


class Known(Struct, frozen=True, kw_only=True):
    """What is known of a run's base and reward model from the runs that trained them; None: not known."""

    base_loss: float | None = None
    """Held-out loss of the base's SFT run, in nats per token."""
    score_std: float | None = None
    """Standard deviation of the reward model's scores of its own held-out responses."""


class Window:
    """Metrics per step, by name."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self._early: list[Metrics] = []
        self._newest: deque[tuple[int, Metrics]] = deque(maxlen=_KEPT)
        self._peaks: dict[str, float] = {}

    @property
    def step(self) -> int:
        """The newest step; 0: none yet."""
        return self._newest[-1][0] if self._newest else 0

    def add(self, step: int, metrics: Metrics) -> None:
        """Add a step; those after it, which a rollback takes back, are dropped."""
        while self._newest and self._newest[-1][0] >= step:
            self._newest.pop()
        self._newest.append((step, metrics))
        if len(self._early) < EARLY:
            self._early.append(metrics)
        for name, value in metrics.items():
            if value is not None and math.isfinite(value):
                self._peaks[name] = max(value, self._peaks.get(name, value))

    def newest(self, name: str, count: int) -> list[float]:
        """Return the newest ``count`` values, oldest first; none where there are fewer, or one is not a number."""
        rows = list(self._newest)[-count:]
        return _numbers([row.get(name) for _, row in rows], count)

    def early(self, name: str) -> list[float]:
        """Return the values of the first :data:`EARLY` steps; none where there are fewer, or one is not a number."""
        return _numbers([row.get(name) for row in self._early], EARLY)

    def peak(self, name: str) -> float | None:
        """Return the highest value so far; None: there is none."""
        return self._peaks.get(name)


def _numbers(values: list[float | None], count: int) -> list[float]:
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    return numbers if len(numbers) == count else []
