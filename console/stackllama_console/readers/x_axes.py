"""Series over something else than steps: time, tokens, episodes or progress.

Where a step lies on such an axis is itself a series (`Places.of`). `Replaced` holds a series over those places and
brings it up to date as points arrive.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import islice
from operator import lt
from typing import Literal

from .protocol import Reader
from .series import Series

XAxis = Literal["step", "time", "tokens", "episodes", "progress"]
"""``time`` in seconds since the run's first event, ``progress`` in percent of its steps."""

AXES: tuple[XAxis, ...] = ("step", "time", "tokens", "episodes")
OF_COMPARISON: tuple[XAxis, ...] = ("step", "progress", "time", "tokens", "episodes")
_METRICS = {"tokens": "num_tokens", "episodes": "episode"}


class Replaced:
    """A series over other places than steps.

    Points whose place is not known (yet), or not beyond the place of the point before, are left out.
    """

    def __init__(self, source: Series, places: Series) -> None:
        self.source, self.places = source, places
        self.series = Series(source.name)
        self._done = self._gaps_done = 0
        self._newest: tuple[float, float] | None = None
        self._place = float("-inf")

    def update(self) -> Series:
        """Return the series, with what has come since."""
        if self._was_rewound():
            self.series.replace([], [])
            self._done = self._gaps_done = 0
            self._newest, self._place = None, float("-inf")
        source = self.source
        stop = len(source.values)  # the last thing that grows
        steps, values = source.steps[self._done : stop], source.values[self._done : stop]
        places = _places(steps, self.places)
        if places:
            self._done += len(places)
            self._newest = steps[len(places) - 1], values[len(places) - 1]
        gaps = source.gaps[self._gaps_done :]
        gap_places = _places(gaps, self.places)
        self._gaps_done += len(gap_places)
        if gap_places:
            merged = sorted([*zip(places, values, strict=False), *((place, None) for place in gap_places)], key=_first)
            self._extend([place for place, _ in merged], [value for _, value in merged])
        elif places:
            self._extend(places, values[: len(places)])
        return self.series

    def _extend(self, places: Sequence[float], values: Sequence[float | None]) -> None:
        if not (places[0] > self._place and all(map(lt, places, islice(places, 1, None)))):
            kept: list[tuple[float, float | None]] = []
            for place, value in zip(places, values, strict=True):
                if place > (kept[-1][0] if kept else self._place):
                    kept.append((place, value))
            places, values = [place for place, _ in kept], [value for _, value in kept]
        if places:
            self._place = places[-1]
            self.series.extend(places, values)

    def _was_rewound(self) -> bool:
        """Return whether the source's newest point of the last time is another one now."""
        if self._newest is None:
            return self._gaps_done > len(self.source.gaps)
        step, value = self.source.steps[self._done - 1 :][:1], self.source.values[self._done - 1 :][:1]
        return not step or not value or (step[0], value[0]) != self._newest or self._gaps_done > len(self.source.gaps)


class Places:
    """The x axis of one screen: where steps lie on it, and its series, each kept as long as the axis is."""

    def __init__(self) -> None:
        self.axis: XAxis = "step"
        self._kept: dict[tuple[int, int], Replaced] = {}
        self._progress: dict[int, Series] = {}

    def choose(self, axis: XAxis) -> None:
        """Choose another axis."""
        self.axis = axis
        self._kept.clear()
        self._progress.clear()

    def of(self, reader: Reader, axis: XAxis | None = None) -> Series | None:
        """Return where each step of a run lies on an axis (None: the one chosen); None where the run does not say."""
        match axis or self.axis:
            case "progress":
                return self._progress_of(reader)
            case "time":
                places: Series | None = getattr(reader, "times", None)
            case "tokens" | "episodes" as counted:
                places = reader.series.get(_METRICS[counted])
            case "step":
                places = None
        return places if places is not None and len(places) else None

    def over(self, source: Series, reader: Reader) -> Series | None:
        """Return a series of a run over the axis, brought up to date; None where the run does not say its places."""
        if self.axis == "step":
            return source
        places = self.of(reader)
        if places is None:
            return None
        key = id(source), id(places)
        kept = self._kept.get(key)
        if kept is None:  # what is kept holds both, so that no other has their identity
            kept = self._kept[key] = Replaced(source, places)
        return kept.update()

    def _progress_of(self, reader: Reader) -> Series | None:
        total = float(max(reader.history.total_steps or 0, reader.history.step))
        places = self._progress.get(id(reader))
        if total and (places is None or places.steps[-1] != total):
            places = Series("progress")
            places.extend([0.0, total], [0.0, 100.0])
            self._progress[id(reader)] = places
        return places


def _first(pair: tuple[float, float | None]) -> float:
    return pair[0]


def _places(steps: "array[float]", places: Series) -> "array[float]":
    """Return the places of ascending steps, in between in proportion; ends before a step without a place yet."""
    if not steps:
        return steps
    stop = len(places.values)
    known, where = places.steps, places.values
    start = bisect_left(known, steps[0], 0, stop)
    if start + len(steps) <= stop and known[start : start + len(steps)] == steps:
        return where[start : start + len(steps)]
    found = array("d")
    for step in steps:
        after = bisect_right(known, step, 0, stop)
        if after and known[after - 1] == step:
            found.append(where[after - 1])
        elif after == stop:
            break
        elif after == 0:
            found.append(where[0])
        else:
            share = (step - known[after - 1]) / (known[after] - known[after - 1])
            found.append(where[after - 1] + share * (where[after] - where[after - 1]))
    return found
