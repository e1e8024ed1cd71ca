"""What one redraw of a chart costs at a thousand points and at a million, without an application around it."""

import math
import random
import time
from collections.abc import Callable

from console_figures import Figure, median
from rich.color import Color
from textual.renderables.sparkline import Sparkline

from stackllama_console.readers.series import Series
from stackllama_console.tui.widgets.axis import Axis
from stackllama_console.tui.widgets.chart_rows import Curve, Picture, draw
from stackllama_console.tui.widgets.chart_view import View

_FEW, _MANY = 1_000, 1_000_000
_WIDTH, _HEIGHT = 80, 20
_CONSOLE_WIDTH = 80


def redraw(turns: int) -> list[Figure]:
    """A point more, then all rows again; and zooms into windows that were never asked for."""
    charts = {count: _Chart(count) for count in (_FEW, _MANY)}
    kinds: dict[str, Callable[[_Chart], None]] = {
        "a point more": _Chart.grow,
        "a fresh zoom": _Chart.zoom,
        "a point more, smoothed": _Chart.grow_smoothed,
    }
    figures: list[Figure] = []
    for kind, work in kinds.items():
        times = {count: [_timed(work, chart)] for count, chart in charts.items()}
        first = times[_MANY].pop(), times[_FEW].pop()  # builds the pyramid
        for _ in range(turns):
            for count, chart in charts.items():
                times[count].append(_timed(work, chart))
        few, many = median(times[_FEW]), median(times[_MANY])
        figures.append(
            Figure(
                name=f"redraw at 1,000,000 points, {kind}",
                wanted="≤ 3 × at 1,000",
                measured=f"{many * 1e3:.2f} ms = {many / few:.2f} × {few * 1e3:.2f} ms",
                bare=_sparkline(),
                passed=many / few <= 3,
                notes=[f"{turns} turns, {_WIDTH} × {_HEIGHT}; the very first one {first[0] * 1e3:.0f} ms"],
            )
        )
    return figures


class _Chart:
    """One curve and the axis that is held."""

    def __init__(self, points: int) -> None:
        self._noise = random.Random(0)
        self._series = Series("reward")
        self._axis: Axis | None = None
        self._view = View()
        values = [math.sin(step / points * 9) + self._noise.gauss(0, 0.2) for step in range(points)]
        self._series.extend(range(points), values)
        self._points = points

    def grow(self, weight: float = 0.0) -> None:
        """One more point, the whole run in sight."""
        self._series.append(self._points, self._noise.gauss(0, 0.2))
        self._points += 1
        start, stop = self._view.window((0.0, self._points - 1.0))
        self._draw(start, stop, weight)

    def grow_smoothed(self) -> None:
        """The same with a moving average and the band of extremes beneath it."""
        self.grow(0.9)

    def zoom(self) -> None:
        """A window somewhere, between a tenth and nine tenths of the run."""
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


def _sparkline(known: list[str] = []) -> str:  # noqa: B006 - measured once
    """Textual's own chart, one row high, of the same lengths."""
    if not known:
        from rich.console import Console

        console = Console(width=_CONSOLE_WIDTH, color_system=None)
        times = {count: [] for count in (_FEW, _MANY)}
        data = {count: [math.sin(step / count * 9) for step in range(count)] for count in times}
        plain = Color.parse("red")
        for _ in range(3):
            for count in times:
                start = time.perf_counter()
                console.render_lines(Sparkline(data[count], width=_WIDTH, min_color=plain, max_color=plain))
                times[count].append(time.perf_counter() - start)
        few, many = median(times[_FEW]), median(times[_MANY])
        known.append(f"Sparkline, 1 row: {many * 1e3:.1f} ms = {many / few:.0f} × {few * 1e3:.2f} ms")
    return known[0]
