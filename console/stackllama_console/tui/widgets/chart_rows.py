"""A chart drawn into rows of cells: heading, plot, axes. Pure: the widget only compares and shows the rows.

▸ reward                                smooth 0.6 · log      heading
  ● seed 1 0.512    ▲ seed 2 0.498                            legend (see `chart_heading`)
 1.0 ┤⠀⢀⡠⠔                                                    plot
 0.5 ┤⠒⠁
     └┬────!────┬───                                          axis; ! where a value was NaN or infinite
      0         1k
"""

from collections.abc import Sequence

from msgspec import Struct

from ...readers.series import Series
from .axis import Axis, Tick, log_axis, value_axis, value_ticks
from .canvas import BAND, CURVES, REFERENCE, Canvas
from .canvas import Span as Dots
from .chart_heading import heading
from .chart_line import Line, Part, fitted
from .chart_picture import SIGNS, Curve, Picture, none_finite
from .x_scale import x_ticks

__all__ = ["Curve", "Picture", "draw", "fit_axis"]

Columns = list[tuple[float, float] | None]
_MARK_EVERY = 14


class Plot(Struct):
    """The plot's position in the chart, and its ranges."""

    left: int
    top: int
    width: int
    height: int
    start: float
    stop: float
    axis: Axis

    def column(self, step: float) -> int:
        """Return the cell column, within the plot, of a step."""
        return min(self.width - 1, max(0, int((step - self.start) / (self.stop - self.start) * self.width)))


def draw(picture: Picture, width: int, height: int, held: Axis | None) -> tuple[list[Line], Axis | None]:
    """Draw the rows; also return the value axis (pass it again next time, so that it stays put)."""
    rows = [Line(width) for _ in range(height)]
    if not (width and height):
        return rows, held
    axis = fit_axis(picture, held)
    below_zero = axis is not None and axis.log and _reaches_zero(picture)
    heads = heading(picture, width, height, below_zero=below_zero)
    top = len(heads)
    rows[:top] = heads
    scales = 2 if height - top >= 5 else 0
    if height - top < 1:
        return rows, axis
    if picture.window is None or axis is None:
        _empty(picture, rows[top:], scales)
        return rows, axis
    ticks = value_ticks(axis, height - top - scales, unit=picture.unit)
    left = max((5, *(len(label) for _, label in ticks))) + 2 if width >= 28 and scales else 0
    plot = Plot(left, top, width - left, height - top - scales, *picture.window, axis)
    _draw_plot(picture, rows, plot)
    if left:
        _value_scale(picture, rows, plot, ticks)
    if scales:
        _step_scale(picture, rows, plot)
    return rows, axis


def _empty(picture: Picture, rows: list[Line], scales: int) -> None:
    """Draw why there is nothing to see, above the step axis with its gaps where there are steps."""
    width, height = len(rows[0].cells), len(rows) - scales
    cells = fitted(_why_empty(picture), width, ascii_only=picture.ascii_only)
    rows[height // 2].put_cells((width - len(cells)) // 2, cells, Part.TEXT)
    if scales and picture.window is not None:
        _step_scale(picture, rows, Plot(0, 0, width, height, *picture.window, Axis(0, 1)))


def _why_empty(picture: Picture) -> str:
    if picture.window is None:
        return "no data yet"
    if not any(len(curve.series) for curve in picture.curves):
        return none_finite(sum(len(curve.series.gaps) for curve in picture.curves))
    return "nothing above zero for a log axis" if picture.log else "no value to draw in these steps"


def fit_axis(picture: Picture, held: Axis | None) -> Axis | None:
    """Return the value axis around what lies in the window; None when nothing that can be drawn does."""
    if picture.window is None:
        return None
    parts = 64 if picture.log else 1  # finer on a log axis, where the smallest positive value is wanted
    seen = [span for curve in picture.curves for span in curve.series.columns(*picture.window, parts) if span]
    if not seen:  # a line may still cross the window
        ends = [point for curve in picture.curves for point in _around(curve.series, picture.window)]
        seen = [(value, value) for _, value in ends]
    if picture.reference is not None:
        seen.append((picture.reference[1], picture.reference[1]))
    if picture.log:
        positive = [low if low > 0 else high for low, high in seen if high > 0]
        return log_axis(min(positive), max(high for _, high in seen), held) if positive else None
    if not seen:
        return None
    return value_axis(min(low for low, _ in seen), max(high for _, high in seen), held, unit=picture.unit)


def _around(series: Series, window: tuple[float, float]) -> list[tuple[float, float]]:
    """Return the points on both sides of a window, when there are both."""
    before, after = series.before(window[0]), series.after(window[1])
    return [before, after] if before and after else []


def _reaches_zero(picture: Picture) -> bool:
    assert picture.window is not None
    spans = (curve.series.columns(*picture.window, 1)[0] for curve in picture.curves)
    return any(span is not None and span[0] <= 0 for span in spans)


def _draw_plot(picture: Picture, rows: list[Line], plot: Plot) -> None:
    canvas = Canvas(plot.width, plot.height, ascii_only=picture.ascii_only)
    span = (plot.start, plot.stop)
    if picture.weight:
        for curve in reversed(picture.curves):
            for column, dots in enumerate(_dots(curve.series.columns(*span, canvas.columns), plot.axis, canvas.rows)):
                if dots is not None:
                    canvas.fill(column, dots, BAND)
    lines: list[tuple[int, list[Dots | None], list[bool]]] = []
    for index, curve in enumerate(picture.curves):
        series = curve.series.smoothed(picture.weight)
        columns = series.columns(*span, canvas.columns)
        breaks = series.gap_columns(*span, canvas.columns) if len(series.gaps) else []
        _carry_to_edges(series, columns, span, plot.axis)
        lines.append((index, _dots(columns, plot.axis, canvas.rows), breaks))
    marks: list[tuple[list[Dots | None], int, int]] = []
    for index, dots, breaks in sorted(lines, key=lambda line: (-_bulk(line[1]), -line[0])):
        owner = index % CURVES + 1
        marks.append((canvas.curve(dots, owner, breaks), owner, index))
    for filled, owner, index in marks:
        _mark(canvas, filled, owner, index, several=len(picture.curves) > 1)
    for row in range(plot.height):
        cells, owners = canvas.row(row)
        rows[plot.top + row].put_cells(plot.left, cells, Part.AXIS)
        rows[plot.top + row].parts[plot.left :] = owners
    _reference(picture, rows, plot)
    _cursor(picture, rows, plot)


def _bulk(dots: list[Dots | None]) -> int:
    """Return how much a curve covers, in powers of two, so that the order does not change at every point.

    A noisy curve goes behind a quiet one, which it would hide.
    """
    return sum(bottom - top + 1 for top, bottom in filter(None, dots)).bit_length()


def _dots(columns: Columns, axis: Axis, height: int) -> list[Dots | None]:
    """Return the topmost and bottommost dot row of each column."""
    most = height - 1
    if axis.log:
        place = axis.place
        return [c and (round((1 - place(c[1])) * most), round((1 - place(c[0])) * most)) for c in columns]
    high, scale = axis.high, most / (axis.high - axis.low)
    return [
        c and (min(most, max(0, round((high - c[1]) * scale))), min(most, max(0, round((high - c[0]) * scale))))
        for c in columns
    ]


def _carry_to_edges(series: Series, columns: Columns, span: tuple[float, float], axis: Axis) -> None:
    """Give the outermost column the value that the line has there where it runs beyond the window."""
    for index, edge in ((0, span[0]), (-1, span[1])):
        if columns[index] is not None:
            continue
        before, after = series.before(edge), series.after(edge)
        if before is None or after is None or any(series.gap_columns(before[0], after[0], 1)):
            continue
        share = (edge / 2 - before[0] / 2) / (after[0] / 2 - before[0] / 2)  # halved against overflow
        value = before[1] * (1 - share) + after[1] * share
        columns[index] = (value, value)


def _mark(canvas: Canvas, filled: Sequence[Dots | None], owner: int, index: int, *, several: bool) -> None:
    """Put a curve's own sign at intervals, staggered, when there are several; and where it is one lonely point."""
    present = [column for column, span in enumerate(filled) if span is not None]
    if len(present) == 1:
        wanted = present
    elif several and not canvas.ascii_only:
        first = (index * 5 + _MARK_EVERY // 2) % _MARK_EVERY * canvas.across
        wanted = [column for column in range(first, canvas.columns, _MARK_EVERY * canvas.across) if filled[column]]
        wanted = wanted or present[len(present) // 2 :][:1]
    else:
        return
    for column in wanted:
        span = filled[column]
        assert span is not None
        canvas.mark(column // canvas.across, (span[0] + span[1]) // 2 // canvas.down, owner)


def _reference(picture: Picture, rows: list[Line], plot: Plot) -> None:
    """Draw a broken line at a value, behind the curves."""
    if picture.reference is None:
        return
    row = rows[plot.top + _row_of(picture, plot, picture.reference[1])]
    sign = SIGNS["ascii" if picture.ascii_only else "up"][8]
    for column in range(plot.left, plot.left + plot.width):
        if row.parts[column] in (Part.AXIS, Part.BAND):
            row.cells[column] = sign
            row.parts[column] = REFERENCE


def _cursor(picture: Picture, rows: list[Line], plot: Plot) -> None:
    """Draw a vertical line through the empty cells of the cursor's column, and its colour on the others."""
    if picture.cursor is None or not plot.start <= picture.cursor <= plot.stop:
        return
    column = plot.left + plot.column(picture.cursor)
    sign = SIGNS["ascii" if picture.ascii_only else "up"][0]
    for row in rows[plot.top : plot.top + plot.height]:
        if row.parts[column] in (Part.AXIS, Part.BAND):
            row.cells[column] = sign
        row.parts[column] = Part.CURSOR


def _row_of(picture: Picture, plot: Plot, value: float) -> int:
    """Return the row of cells, within the plot, in which a value is drawn."""
    down = 1 if picture.ascii_only else 4
    return round((1 - plot.axis.place(value)) * (plot.height * down - 1)) // down


def _value_scale(picture: Picture, rows: list[Line], plot: Plot, ticks: list[Tick]) -> None:
    signs = SIGNS["ascii" if picture.ascii_only else "up"]
    for row in rows[plot.top : plot.top + plot.height]:
        row.put(plot.left - 1, signs[0], Part.AXIS)
    taken: set[int] = set()
    for value, label in ticks:
        row = _row_of(picture, plot, value)
        if row not in taken:
            taken.add(row)
            rows[plot.top + row].put(0, f"{label:>{plot.left - 2}} ", Part.TEXT)
            rows[plot.top + row].put(plot.left - 1, signs[1], Part.AXIS)


def _step_scale(picture: Picture, rows: list[Line], plot: Plot) -> None:
    """Draw the axis line with ticks and gap signs, and the labels centred beneath the ticks."""
    signs = SIGNS["ascii" if picture.ascii_only else "up"]
    line, labels = rows[plot.top + plot.height], rows[plot.top + plot.height + 1]
    line.put(plot.left, signs[3] * plot.width, Part.AXIS)
    if plot.left:
        line.put(plot.left - 1, signs[2], Part.AXIS)
    free = 0
    for step, label in x_ticks(plot.start, plot.stop, plot.width, picture.x):
        column = plot.left + plot.column(step)
        line.put(column, signs[4], Part.AXIS)
        start = min(max(0, column - len(label) // 2), len(labels.cells) - len(label))
        if start >= free:
            free = labels.put(start, label, Part.TEXT) + 1
    for curve in picture.curves:
        for column, gap in enumerate(curve.series.gap_columns(plot.start, plot.stop, plot.width)):
            if gap:
                line.put(plot.left + column, "!", Part.GAP)
