"""The cost of one redraw of a chart at a thousand points and at a million, without an application around it."""

import math
import random
import time
from collections.abc import Callable
from pathlib import Path

from console_measurement import Measurement, Sizes, median
from rich.color import Color
from rich.console import Console
from textual.renderables.sparkline import Sparkline

from stackllama_console.readers.series import Series
from stackllama_console.tui.widgets.axis import Axis
from stackllama_console.tui.widgets.chart_rows import Curve, Picture, draw
from stackllama_console.tui.widgets.chart_view import View

_WIDTH, _HEIGHT = 80, 20
_CONSOLE_WIDTH = 80


def redraw(scratch: Path, sizes: Sizes) -> list[Measurement]:
    """Append a point and draw all rows again, and zoom into windows that were never drawn; writes no file."""
    few_points, many_points = max(100, sizes.points // 1000), sizes.points
    charts = {count: _Chart(count) for count in (few_points, many_points)}
    kinds: dict[str, Callable[[_Chart], None]] = {
        "a point more": _Chart.grow,
        "a fresh zoom": _Chart.zoom,
        "a point more, smoothed": _Chart.grow_smoothed,
    }
    bare = _sparkline(few_points, many_points)
    measured: list[Measurement] = []
    for kind, work in kinds.items():
        times = {count: [_timed(work, chart)] for count, chart in charts.items()}
        first = times[many_points].pop(), times[few_points].pop()  # builds the pyramid
        for _ in range(sizes.redraws):
            for count, chart in charts.items():
                times[count].append(_timed(work, chart))
        few, many = median(times[few_points]), median(times[many_points])
        measured.append(
            Measurement(
                name=f"redraw at {many_points:,} points, {kind}",
                wanted=f"≤ 3 × at {few_points:,}",
                measured=f"{many * 1e3:.2f} ms = {many / few:.2f} × {few * 1e3:.2f} ms",
                bare=bare,
                passed=many / few <= 3,
                notes=[f"{sizes.redraws} turns, {_WIDTH} × {_HEIGHT}; the very first one {first[0] * 1e3:.0f} ms"],
            )
        )
    return measured


class _Chart:
    """One curve, and the axis of its last drawing."""

    def __init__(self, points: int) -> None:
        self._noise = random.Random(0)
        self._series = Series("reward")
        self._axis: Axis | None = None
        self._view = View()
        values = [math.sin(step / points * 9) + self._noise.gauss(0, 0.2) for step in range(points)]
        self._series.extend(range(points), values)
        self._points = points

    def grow(self, weight: float = 0.0) -> None:
        """Append a point, the whole run in sight."""
        self._series.append(self._points, self._noise.gauss(0, 0.2))
        self._points += 1
        start, stop = self._view.window((0.0, self._points - 1.0))
        self._draw(start, stop, weight)

    def grow_smoothed(self) -> None:
        """Append a point under a moving average and the band of extremes."""
        self.grow(0.9)

    def zoom(self) -> None:
        """Draw a random window, between a tenth and nine tenths of the run."""
        width = self._points * self._noise.uniform(0.1, 0.9)
        start = self._noise.uniform(0, self._points - width)
        self._draw(start, start + width, 0.0)

    def _draw(self, start: float, stop: float, weight: float) -> None:
        picture = Picture(title="reward", curves=[Curve("reward", self._series)], window=(start, stop), weight=weight)
        _, self._axis = draw(picture, _WIDTH, _HEIGHT, self._axis)


def _timed(work: Callable[[_Chart], None], chart: _Chart) -> float:
    start = time.perf_counter()
    work(chart)
    return time.perf_counter() - start


def _sparkline(few_points: int, many_points: int) -> str:
    """Time Textual's own chart, one row high, at the same lengths."""
    console = Console(width=_CONSOLE_WIDTH, color_system=None)
    times: dict[int, list[float]] = {few_points: [], many_points: []}
    data = {count: [math.sin(step / count * 9) for step in range(count)] for count in times}
    plain = Color.parse("red")
    for _ in range(3):
        for count, values in data.items():
            start = time.perf_counter()
            console.render_lines(Sparkline(values, width=_WIDTH, min_color=plain, max_color=plain))
            times[count].append(time.perf_counter() - start)
    few, many = median(times[few_points]), median(times[many_points])
    return f"Sparkline, 1 row: {many * 1e3:.1f} ms = {many / few:.0f} × {few * 1e3:.2f} ms"
