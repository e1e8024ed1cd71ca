"""One metric over steps: points, gaps, the extremes of any range, and a smoothed copy.

A metric may have a million points and is drawn twice a second. ``columns`` therefore asks a pyramid of minima and
maxima (see `pyramid`), not the points: no decimation, so a spike of one point never vanishes from a chart.

Safe to fill from one thread and to draw from another: each call holds the series' lock.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, compress, islice, pairwise
from math import isfinite, ulp
from operator import lt, not_
from threading import RLock
from typing import cast

from .pyramid import Pyramid

_SMOOTHED_KEPT = 3


class Series:
    """Finite points in ascending order of step. 16 bytes per point, one more for the pyramid."""

    __slots__ = ("_end", "_lock", "_pyramid", "_smoothed", "gaps", "name", "steps", "values", "version")

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps: array[float] = array("d")
        """Steps of the finite points, strictly ascending."""
        self.values: array[float] = array("d")
        self.gaps: array[float] = array("d")
        """Steps whose value was NaN or infinite, strictly ascending."""
        self.version = 0
        """Grows with every change."""
        self._end = float("-inf")
        self._lock = RLock()
        self._pyramid = Pyramid(self.values)
        self._smoothed: dict[float, Series] = {}

    def __len__(self) -> int:
        return len(self.values)

    @property
    def first(self) -> float | None:
        """The earliest value; None without points."""
        head = self.values[:1]  # one operation, so that a rewind in another thread cannot come between
        return head[0] if head else None

    @property
    def last(self) -> float | None:
        """The newest value; None without points."""
        tail = self.values[-1:]
        return tail[0] if tail else None

    @property
    def span(self) -> tuple[float, float] | None:
        """First and last step, gaps included; None when nothing has been appended."""
        ends = [*self.steps[:1], *self.gaps[:1], *self.steps[-1:], *self.gaps[-1:]]
        return (min(ends), max(ends)) if ends else None

    def append(self, step: float, value: float | None) -> None:
        """Append the value of a step; None, NaN and infinities are gaps.

        A step that is not after the last one rewinds: points from there on are dropped, because a resumed run does
        those steps again.

        Raises:
            ValueError: the step is not finite.
        """
        if not isfinite(step):
            raise ValueError(f"{self.name}: step {step} is not finite")
        with self._lock:
            if step <= self._end:
                self._rewind(step)
            self._end = step
            if value is not None and isfinite(value):
                self.steps.append(step)
                self.values.append(value)
            else:
                self.gaps.append(step)
            self.version += 1

    def extend(self, steps: Sequence[float], values: Sequence[float | None]) -> None:
        """Append many points, the fast way where the steps ascend.

        Raises:
            ValueError: different lengths, or a step that is not finite.
        """
        if len(steps) != len(values):
            raise ValueError(f"{self.name}: {len(steps)} steps for {len(values)} values")
        if not steps:
            return
        if ascends(steps):
            self.extend_ascending(array("d", steps), values)
            return
        with self._lock:
            for step, value in zip(steps, values, strict=True):
                self.append(step, value)

    def extend_ascending(self, steps: "array[float]", values: Sequence[float | None]) -> None:
        """Append as many points as there are steps, which were looked at with `ascends`."""
        with self._lock:
            if steps[0] <= self._end:
                self._rewind(steps[0])
            if _all_finite(values):
                self.steps.extend(steps)
                self.values.extend(array("d", cast("Sequence[float]", values)))
            else:
                finite = [value is not None and isfinite(value) for value in values]
                self.steps.extend(compress(steps, finite))
                self.values.extend(cast("Iterable[float]", compress(values, finite)))
                self.gaps.extend(compress(steps, map(not_, finite)))
            self._end = steps[-1]
            self.version += 1

    def replace(self, steps: Sequence[float], values: Sequence[float | None]) -> None:
        """Replace all points by others; see `extend`."""
        with self._lock:
            self._rewind(float("-inf"))
            self._end = float("-inf")
            self.extend(steps, values)

    def nearest(self, step: float) -> tuple[float, float] | None:
        """Return (step, value) of the point closest to a step, the earlier of two; None without points."""
        before, after = self.before(step), self.after(step)
        if before is None or after is None:
            return before or after
        return after if after[0] - step < step - before[0] else before

    def before(self, step: float) -> tuple[float, float] | None:
        """Return the last point at or before a step; None without one."""
        with self._lock:
            index = bisect_right(self.steps, step, 0, len(self.values)) - 1
            return (self.steps[index], self.values[index]) if index >= 0 else None

    def after(self, step: float) -> tuple[float, float] | None:
        """Return the first point after a step; None without one."""
        with self._lock:
            index = bisect_right(self.steps, step, 0, len(self.values))
            return (self.steps[index], self.values[index]) if index < len(self.values) else None

    def columns(self, start: float, stop: float, count: int) -> list[tuple[float, float] | None]:
        """Return (min, max) of the points in each of ``count`` equal step ranges; None where there is no point.

        Range i is [start + i·w, start + (i + 1)·w) with w = (stop − start) / count; the last one includes ``stop``.

        Raises:
            ValueError: ``stop`` before ``start``, a bound that is not finite, or a negative count.
        """
        with self._lock:
            cuts = _cuts(self.steps, len(self.values), start, stop, count)
            return self._pyramid.extents(cuts)

    def gap_columns(self, start: float, stop: float, count: int) -> list[bool]:
        """Return for each of the ranges of `columns` whether a gap lies in it."""
        with self._lock:
            cuts = _cuts(self.gaps, len(self.gaps), start, stop, count)
            return [a < b for a, b in pairwise(cuts)]

    def smoothed(self, weight: float) -> "Series":
        """Return the exponential moving average with bias correction, as TensorBoard smooths; read-only.

        a_i = weight · a_(i−1) + (1 − weight) · v_i with a_0 = 0, shown as a_i / (1 − weight^i). Gaps are stepped
        over. Kept for the last few weights and brought up to date by each call; weight 0 is the series itself.
        (https://github.com/tensorflow/tensorboard, ``vz_line_chart2/line-chart.ts``, ``resmoothDataset``.)

        Raises:
            ValueError: a weight outside [0, 1).
        """
        if not 0 <= weight < 1:
            raise ValueError(f"smoothing weight {weight} is not in [0, 1)")
        if weight == 0:
            return self
        with self._lock:
            smoothed = self._smoothed.pop(weight, None)
            if smoothed is None:  # an empty one is false
                smoothed = self._derived()
            self._smoothed[weight] = smoothed
            if len(self._smoothed) > _SMOOTHED_KEPT:
                del self._smoothed[next(iter(self._smoothed))]
            _catch_up(self.values, smoothed, weight)
            return smoothed

    def _derived(self) -> "Series":
        """Make a series that shares everything with this one but its values."""
        series = Series(self.name)
        series.steps, series.gaps, series._lock = self.steps, self.gaps, self._lock
        return series

    def _rewind(self, step: float) -> None:
        self._cut(bisect_left(self.steps, step))
        del self.steps[len(self.values) :]
        del self.gaps[bisect_left(self.gaps, step) :]

    def _cut(self, count: int) -> None:
        """Keep the first ``count`` values, here and in what was derived from them."""
        del self.values[count:]
        self._pyramid.cut(count)
        self.version += 1
        for series in self._smoothed.values():
            series._cut(count)


def ascends(steps: Sequence[float]) -> bool:
    """Return whether steps, of which there are some, are finite and each is after the one before."""
    return isfinite(steps[0]) and isfinite(steps[-1]) and all(map(lt, steps, islice(steps, 1, None)))


def _all_finite(values: Sequence[float | None]) -> bool:
    """Return whether all values are finite; False as well where their sum overflows."""
    try:
        return isfinite(sum(cast("Sequence[float]", values)))
    except TypeError:  # None among them
        return False


def _cuts(steps: "array[float]", stop_index: int, start: float, stop: float, count: int) -> list[int]:
    """Return the ``count`` + 1 indices that part the points at the edges of the ranges."""
    if not (isfinite(start) and isfinite(stop) and start <= stop and count >= 0):
        raise ValueError(f"no {count} ranges from {start} to {stop}")
    width = stop - start
    cuts = [bisect_left(steps, start, 0, stop_index)]
    for index in range(1, count):
        cuts.append(bisect_left(steps, start + width * index / count, cuts[-1], stop_index))
    return [*cuts, bisect_right(steps, stop, cuts[-1], stop_index)] if count else cuts


def _catch_up(values: "array[float]", smoothed: Series, weight: float) -> None:
    """Smooth the values added since; the average is recovered from its newest value: a_n = shown_n · (1 − w^n)."""
    done = len(smoothed)
    if done == len(values):
        return
    average = smoothed.values[-1] * (1 - weight**done) if done else 0.0
    share = 1 - weight
    power = weight**done
    shown: list[float] = []
    while power > ulp(1) / 4 and done < len(values):  # after that the correction is 1 in floating point
        average = weight * average + share * values[done]
        power *= weight
        done += 1
        shown.append(average / (1 - power))
    if done < len(values):
        rest = accumulate(values[done:], lambda a, v: weight * a + share * v, initial=average)
        shown.extend(islice(rest, 1, None))
    smoothed.values.extend(array("d", shown))
    smoothed.version += 1
