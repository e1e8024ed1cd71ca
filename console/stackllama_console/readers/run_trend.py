"""What the newest events say of how a run goes: time left, and the recent values of the number it is known by."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import isfinite

from stackllama_engine.contract.events import Event
from stackllama_engine.contract.metrics import listed
from stackllama_engine.contract.stages import Stage

from .eta import Pace, estimate

POINTS = 12
"""Values of a trend."""
_BARS = "▁▂▃▄▅▆▇█"


class Trend:
    """Progress and values of the events that were added."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._values: dict[str, list[float]] = {}
        self._updated: float | None = None

    def add(self, events: Iterable[Event]) -> None:
        """Add the newest events of an attempt; an earlier attempt's pace no longer counts, its values do."""
        self._pace = Pace()
        for event in events:
            if event.kind == "phase":
                self._pace.enter(event.time, event.phase)
            if event.step is None:
                continue
            if event.kind in ("progress", "metrics"):
                self._pace.add(event.time, event.step)
                self._updated = event.time
            if event.kind == "metrics":
                for name, value in (event.metrics or {}).items():
                    if value is not None and isfinite(value):
                        self._values.setdefault(name, []).append(value)

    def seconds_left(self, total_steps: int | None) -> float | None:
        """Return the seconds left when the newest event was written; None where they cannot be known."""
        if self._updated is None:
            return None
        eta = estimate(self._pace.points, total_steps, self._pace.clock(self._updated))
        return eta.likely if eta else None

    def points(self, stage: Stage) -> tuple[float, ...]:
        """Return recent values of the stage's number for lists, each the mean of as many; none before two values."""
        name = next((metric.name for metric in listed(stage) if metric.name in self._values), "")
        values = self._values.get(name, [])
        return _thinned(values) if len(values) > 1 else ()


def sparkline(points: Sequence[float]) -> str:
    """Draw values as bars of eight heights, the lowest and the highest value at the ends of the scale."""
    if not points:
        return ""
    low, high = min(points), max(points)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((point - low) * scale)] for point in points)


def _thinned(values: Sequence[float]) -> tuple[float, ...]:
    count = min(POINTS, len(values))
    edges = [len(values) * index // count for index in range(count + 1)]
    return tuple(sum(values[start:end]) / (end - start) for start, end in pairwise(edges))
