"""Charts as files: what is in sight as CSV, one row per point, and as SVG, ready to be turned into a PNG."""

import csv
import io
import math
import re
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from stackllama_engine.contract.atomic_files import make_private_dir, write_whole

from ..paths import exports_dir
from ..readers.series import Series
from ..units import number
from .widgets.chart_picture import Drawn

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 56, 36
_COLUMNS = _WIDTH - _LEFT - _RIGHT
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Told apart by colour-blind people too (Okabe and Ito, https://jfly.uni-koeln.de/color/)."""
_DASHES = ("", "6 3", "2 2", "8 3 2 3", "1 3", "10 4")
_IN_NAMES = re.compile(r"[^\w.=-]+")


def export(charts: Sequence[Drawn], run: str, screen: str) -> list[Path]:
    """Write the charts as CSV and SVG, the names of run and screen in the files'; return the files.

    Raises:
        OSError: a file cannot be written.
    """
    folder = exports_dir()
    if not folder.is_dir():
        make_private_dir(folder)
    name = _IN_NAMES.sub("_", f"{run}-{screen}-{time.strftime('%Y%m%d-%H%M%S')}").strip("_.-")[:180]
    files = [folder / f"{name}.csv", folder / f"{name}.svg"]
    for file, text in zip(files, (as_csv(charts, run), as_svg(charts, run)), strict=True):
        write_whole(file, text.encode())
    return files


def as_csv(charts: Iterable[Drawn], run: str) -> str:
    """Return every point in sight: run, chart, curve, place and value, and the moving average where one is drawn.

    A reference line is a row without a place.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "chart", "curve", "x", "place", "value", "smoothed"])
    for chart in charts:
        for label, series in chart.curves:
            averages = series.smoothed(chart.weight).values if chart.weight else None
            first, stop = bisect_left(series.steps, chart.window[0]), bisect_right(series.steps, chart.window[1])
            for index in range(first, min(stop, len(series))):
                place = series.steps[index]
                row = [run, chart.title, label, chart.x, place if place % 1 else int(place), series.values[index]]
                writer.writerow([*row, "" if averages is None else averages[index]])
        if chart.reference is not None:  # at every place
            writer.writerow([run, chart.title, chart.reference[0], chart.x, "", chart.reference[1], ""])
    return text.getvalue()


def as_svg(charts: Sequence[Drawn], run: str) -> str:
    """Return the charts in two columns on a white ground; extremes stay, however many points there are."""
    columns = min(2, len(charts))
    rows = -(-len(charts) // columns) if columns else 0
    width, height = columns * _WIDTH, rows * _HEIGHT + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        f"<title>{escape(run)}</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="12" y="20" font-weight="bold">{escape(run)}</text>',
    ]
    for index, chart in enumerate(charts):
        x, y = index % columns * _WIDTH, index // columns * _HEIGHT + 30
        parts += [f'<g transform="translate({x} {y})">', *_chart(chart), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _chart(chart: Drawn) -> Iterable[str]:
    flags = [f"by {chart.x}"] if chart.x != "step" else []
    flags += [f"smooth {chart.weight:g}"] if chart.weight else []
    flags += [("log, 0 and less at the bottom" if _reaches_zero(chart) else "log")] if chart.log else []
    yield f'<text x="{_LEFT}" y="16" font-weight="bold">{escape(chart.title)}</text>'
    yield f'<text x="{_WIDTH - _RIGHT}" y="16" text-anchor="end" fill="#666">{escape(" · ".join(flags))}</text>'
    bottom = _HEIGHT - _BOTTOM
    for value, label in chart.value_ticks:
        y = _y(chart, value)
        yield f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>'
    for place, label in chart.x_ticks:
        yield f'<text x="{_x(chart, place):.1f}" y="{bottom + 18}" text-anchor="middle">{escape(label)}</text>'
    yield f'<path d="M{_LEFT} {_TOP}V{bottom}H{_WIDTH - _RIGHT}" fill="none" stroke="#888"/>'
    start, beside = _LEFT, 0.0 if chart.log else max(abs(chart.low), abs(chart.high))
    for index, (label, series) in enumerate(chart.curves):
        colour, dashes = _COLOURS[index % len(_COLOURS)], _DASHES[index % len(_DASHES)]
        if chart.weight:
            yield f'<path d="{_line(_points(chart, series))}" fill="none" stroke="{colour}" stroke-opacity="0.25"/>'
        shown = series.smoothed(chart.weight)
        points = _points(chart, shown)
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        yield f'<path d="{_line(points)}" fill="none" stroke="{colour}" stroke-width="1.5"{dashed}/>'
        if len(points) == 1:  # a line of one point is not to be seen
            yield f'<circle cx="{points[0][0]:g}" cy="{points[0][1]:.1f}" r="3" fill="{colour}"/>'
        text = f"{label} {number(shown.last, chart.unit, beside=beside) if len(shown) else '-'}"
        yield f'<path d="M{start} 32h18" stroke="{colour}" stroke-width="2"{dashed}/>'
        yield f'<text x="{start + 22}" y="36">{escape(text)}</text>'
        start += 40 + 7 * len(text)
    if chart.reference is not None:
        label, value = chart.reference
        line = 'stroke="#222" stroke-dasharray="2 4"'
        yield f'<path d="M{_LEFT} {_y(chart, value):.1f}H{_WIDTH - _RIGHT}" {line}/>'
        yield f'<path d="M{start} 32h18" {line}/>'
        yield f'<text x="{start + 22}" y="36">{escape(f"{label} {number(value, chart.unit, beside=beside)}")}</text>'


def _reaches_zero(chart: Drawn) -> bool:
    spans = [series.columns(*chart.window, 1)[0] for _, series in chart.curves]
    return any(span is not None and span[0] <= 0 for span in spans)


def _points(chart: Drawn, series: Series) -> list[tuple[float, float]]:
    """Return each column's extremes."""
    start, stop = chart.window
    points: list[tuple[float, float]] = []
    before: float | None = None
    for index, span in enumerate(series.columns(start, stop, _COLUMNS)):
        if span is None:
            continue
        ends = sorted(set(span), reverse=before is not None and abs(span[1] - before) < abs(span[0] - before))
        points += [(_LEFT + index + 0.5, _y(chart, value)) for value in ends]
        before = ends[-1]
    return points


def _line(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:.1f}" for x, y in points) if points else ""


def _x(chart: Drawn, place: float) -> float:
    start, stop = chart.window
    return _LEFT + (place - start) / (stop - start) * _COLUMNS


def _y(chart: Drawn, value: float) -> float:
    low, high = chart.low, chart.high
    if chart.log:
        value, low, high = (math.log10(max(one, chart.low)) for one in (value, low, high))
    share = (value - low) / (high - low)
    return _TOP + (1 - min(1.0, max(0.0, share))) * (_HEIGHT - _TOP - _BOTTOM)
