"""Minima and maxima of blocks of a growing array, so that a range of any length costs the same to query.

Level 0 holds the (min, max) of each complete block of 16 values, level k of each 16 blocks of level k − 1. A range
query reads the ragged ends of each level and goes up: about 2 × 16 values per level, whatever the length.
"""

from array import array
from itertools import pairwise

FACTOR = 16
_LONG = 4 * FACTOR
_KEPT = 1024


class Pyramid:
    """Complete blocks only; built at a query and not when values are added, so that adding stays cheap."""

    __slots__ = ("_extents", "_levels", "_values")

    def __init__(self, values: "array[float]") -> None:
        self._values = values
        self._levels: list[tuple[array[float], array[float]]] = []
        self._extents: dict[tuple[int, int], tuple[float, float]] = {}
        """Extents of long ranges: a chart that grows at its end queries the same ones again and again."""

    def extents(self, cuts: list[int]) -> list[tuple[float, float] | None]:
        """Return (min, max) of the values between neighbouring cuts (ascending indices); None where two cuts agree."""
        self._build()
        return [self._extent(a, b) if a < b else None for a, b in pairwise(cuts)]

    def _extent(self, first: int, stop: int) -> tuple[float, float]:
        if stop - first < _LONG:
            part = self._values[first:stop]
            return min(part), max(part)
        extent = self._extents.get((first, stop))
        if extent is None:
            if len(self._extents) >= _KEPT:
                self._extents.clear()
            extent = self._extents[first, stop] = self._look_up(first, stop)
        return extent

    def _look_up(self, first: int, stop: int) -> tuple[float, float]:
        """Compare the ragged ends of each level and what is left at the top, gathered in lists for speed."""
        values = self._values
        head, tail = -(-first // FACTOR), stop // FACTOR
        if head >= tail:
            part = values[first:stop].tolist()
            return min(part), max(part)
        least = values[first : head * FACTOR].tolist() + values[tail * FACTOR : stop].tolist()
        most = least.copy()
        first, stop = head, tail
        lows, highs = self._levels[0]
        for above in self._levels[1:]:
            head, tail = -(-first // FACTOR), stop // FACTOR
            if head >= tail:
                break
            least += lows[first : head * FACTOR]
            least += lows[tail * FACTOR : stop]
            most += highs[first : head * FACTOR]
            most += highs[tail * FACTOR : stop]
            (lows, highs), first, stop = above, head, tail
        least += lows[first:stop]
        most += highs[first:stop]
        return min(least), max(most)

    def cut(self, count: int) -> None:
        """Keep the blocks of the first ``count`` values; the others were removed."""
        self._extents.clear()
        for lows, highs in self._levels:
            count //= FACTOR
            del lows[count:], highs[count:]

    def _build(self) -> None:
        """Add the blocks that have become complete since."""
        lows = highs = self._values
        level = 0
        while len(lows) >= FACTOR:
            if level == len(self._levels):
                self._levels.append((array("d"), array("d")))
            upper_lows, upper_highs = self._levels[level]
            done, complete = len(upper_lows), len(lows) // FACTOR
            if done == complete:
                return  # then nothing is new further up either
            starts = range(done * FACTOR, complete * FACTOR, FACTOR)
            upper_lows.extend([min(lows[start : start + FACTOR]) for start in starts])
            upper_highs.extend([max(highs[start : start + FACTOR]) for start in starts])
            lows, highs, level = upper_lows, upper_highs, level + 1
