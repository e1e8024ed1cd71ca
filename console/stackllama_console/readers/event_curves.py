"""The values of one TensorBoard tag from several event files: a run restarted, or several programs at once.

A program that is restarted has ended before, so a file whose values begin after another one's had ended continues it:
its values count from its first step on. Files whose times overlap were written by different programs. Where these have
no step in common (workers that take turns, tensorboard#5958) all points make one curve; otherwise each has its own.
"""

from math import inf, isfinite
from pathlib import Path
from typing import Literal

from .series import Series
from .tensorboard import Scalar

Added = Literal["added", "dropped", "again"]


class TagCurve:
    """All values of a tag.

    Args:
        name: of the curve; those of further programs get a number behind it.

    Attributes:
        series: name → curve; replaced by `flush`, never changed in size.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.series: dict[str, Series] = {}
        self._writers: list[_Writer] = []
        self._of: dict[Path, _Writer] = {}
        self._merged = Series(name)

    @property
    def writers(self) -> int:
        """Number of programs that wrote it."""
        return len(self._writers)

    def add(self, path: Path, scalar: Scalar) -> Added:
        """Add a value; `flush` appends it to its series.

        Returns:
            The outcome. ``again``: an older file grew after a newer one had been taken for its continuation, so
            everything has to be read again, oldest file first.
        """
        time = scalar.time if isfinite(scalar.time) else inf  # without a time it counts as a restart
        writer = self._of.get(path)
        if writer is None:
            ended = [each for each in self._writers if each.last <= time]
            writer = max(ended, key=lambda each: each.last) if ended else self._new_writer()
            writer.path, writer.begun = path, time
            self._of[path] = writer
        elif writer.path != path:
            return "dropped" if time <= writer.begun else "again"
        writer.add(scalar.step, scalar.value if isfinite(scalar.value) else None)
        if isfinite(time):
            writer.last = max(writer.last, time)
        return "added"

    def flush(self) -> bool:
        """Bring `series` up to date; return whether anything was added."""
        changed = [writer for writer in self._writers if writer.flush()]
        if not changed:
            return False
        curves = [writer.series for writer in self._writers if len(writer.series) or len(writer.series.gaps)]
        merged = _merged(curves) if len(curves) > 1 else None
        if merged is not None:
            self._merged.replace(*merged)
            self.series = {self.name: self._merged}
        else:
            self.series = {series.name: series for series in curves}
        return True

    def _new_writer(self) -> "_Writer":
        number = len(self._writers) + 1
        self._writers.append(_Writer(self.name if number == 1 else f"{self.name} ({number})"))
        return self._writers[-1]


class _Writer:
    """One program: its newest file, when that began, and when it wrote last."""

    def __init__(self, name: str) -> None:
        self.series = Series(name)
        self.path = Path()
        self.begun = self.last = -inf
        self._steps: list[float] = []
        self._values: list[float | None] = []

    def add(self, step: int, value: float | None) -> None:
        self._steps.append(step)
        self._values.append(value)

    def flush(self) -> bool:
        if not self._steps:
            return False
        self.series.extend(self._steps, self._values)
        self._steps, self._values = [], []
        return True


def _merged(curves: list[Series]) -> tuple[list[float], list[float | None]] | None:
    """Merge all points in the order of their steps; None where a step comes twice."""
    points: dict[float, float | None] = {}
    count = 0
    for series in curves:
        points.update(zip(series.steps, series.values, strict=True))
        points.update(dict.fromkeys(series.gaps))
        count += len(series.steps) + len(series.gaps)
    if len(points) != count:
        return None
    steps = sorted(points)
    return steps, [points[step] for step in steps]
