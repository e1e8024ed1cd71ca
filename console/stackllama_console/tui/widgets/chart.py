"""The chart widget: curves over steps, drawn by `chart_rows`, of which only changed cells are sent.

A screen's timer calls ``update()``. It costs nothing while no series has a new version; otherwise the rows are drawn
again, compared with those on the screen, and the stretches that differ are refreshed. Over SSH that is the difference
between tens of KiB and a few KiB a second.

Several curves are told apart without colour: each bears its own mark at intervals, the one shown in the legend; with
``ascii`` it is drawn in a character of its own.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from stackllama_engine.contract.metrics import Unit

from ...readers.x_axes import XAxis
from ...sanitise import one_line
from .axis import Axis, value_ticks
from .chart_line import COMPONENTS, Line
from .chart_look import SMOOTHING, Look
from .chart_picture import Curve, Drawn, Picture
from .chart_rows import draw
from .chart_summary import summarise
from .chart_view import Span, View
from .x_scale import x_ticks

__all__ = ["SMOOTHING", "Chart", "Curve"]

_FARTHEST = 1e15  # no run takes more steps; a damaged file may claim to


class Chart(Widget, can_focus=True):
    """One or more curves with axes, a legend, zoom, pan and a cursor."""

    DEFAULT_CSS = """
    Chart {
        width: 1fr; height: 1fr; background: transparent;
        & > .chart--curve-1 { color: $primary; }
        & > .chart--curve-2 { color: $accent; }
        & > .chart--curve-3 { color: $success; }
        & > .chart--curve-4 { color: $error; }
        & > .chart--curve-5 { color: $secondary; }
        & > .chart--curve-6 { color: $warning; }
        & > .chart--axis { color: $text-disabled; }
        & > .chart--text { color: $text-muted; }
        & > .chart--band { color: $text-disabled; }
        & > .chart--reference { color: $text; }
        & > .chart--gap { color: $error; text-style: bold; }
        & > .chart--cursor { color: $text; text-style: bold; }
        & > .chart--title { color: $text; }
        & > .chart--focused { color: $text; text-style: bold underline; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = set(COMPONENTS.values())
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "log", "log axis", id="chart.log", show=False, tooltip="Logarithmic value axis, on or off"),
        Binding("s", "smooth", "smooth", id="chart.smooth", show=False, tooltip="Smoothing: off, 0.6, 0.9, 0.97"),
        Binding("plus,equals_sign", "zoom(0.5)", "zoom in", id="chart.zoom_in", show=False),
        Binding("minus", "zoom(2.0)", "zoom out", id="chart.zoom_out", show=False),
        Binding("0", "reset", "show whole run", id="chart.reset", show=False),
        Binding(
            "left,h", "pan(-1)", "pan left", id="chart.pan_left", show=False, tooltip="Pan, or move the cursor, left"
        ),
        Binding(
            "right,l", "pan(1)", "pan right", id="chart.pan_right", show=False, tooltip="Pan, or move the cursor, right"
        ),
        Binding("home", "end(-1)", "pan to start", id="chart.home", show=False),
        Binding("end", "end(1)", "pan to newest", id="chart.end", show=False),
        Binding("c", "cursor", "cursor", id="chart.cursor", show=False, tooltip="Read values at a cursor"),
        Binding("Y", "ask('log')", "log axis of all charts", id="chart.log_all", show=False),
        Binding("S", "ask('smooth')", "smoothing of all charts", id="chart.smooth_all", show=False),
        Binding("X", "ask('x')", "x axis", id="chart.x", show=False, tooltip="x axis: step, time, tokens, episodes"),
        Binding("asterisk", "ask('pin')", "pin", id="chart.pin", key_display="*", show=False, tooltip="Keep in sight"),
        Binding("E", "ask('export')", "export", id="chart.export", show=False, tooltip="Charts in sight as CSV, SVG"),
    ]

    class Asked(Message):
        """A key for all charts of the screen, or for where this one is, was pressed.

        Attributes:
            chart: that has the keys.
            what: ``log``, ``smooth``, ``x``, ``pin`` or ``export``.
        """

        def __init__(self, chart: "Chart", what: str) -> None:
            super().__init__()
            self.chart, self.what = chart, what

    def __init__(
        self, title: str, *, id: str | None = None, ascii: bool = False, unit: Unit = "number"
    ) -> None:  # the names are Textual's and the command line's
        super().__init__(id=id)
        self.title = one_line(title)
        self.ascii_only = ascii
        self.unit: Unit = unit
        self.look = Look()
        self.x: XAxis = "step"
        self.pinned = False
        self._curves: list[Curve] = []
        self._reference: tuple[str, float] | None = None
        self._axis: Axis | None = None
        self._versions: tuple[int, ...] = ()
        self._rows: list[Line] = []
        self._drawn_for = (-1, -1)

    @property
    def curves(self) -> Sequence[Curve]:
        """The curves shown, with sanitised labels."""
        return tuple(self._curves)

    @property
    def rows(self) -> Sequence[str]:
        """The rows as text, as last drawn."""
        return tuple("".join(line.cells) for line in self._rows)

    @property
    def view(self) -> View:
        """Window and cursor."""
        return self.look.view

    @property
    def weight(self) -> float:
        """Weight of the moving average."""
        return self.look.weight

    @property
    def log_axis(self) -> bool:
        """Whether the value axis is logarithmic."""
        return self.look.log

    def set_curves(
        self, curves: Sequence[Curve], *, reference: tuple[str, float] | None = None, look: Look | None = None
    ) -> None:
        """Show these curves, in this order; the first is drawn in front.

        The value axis is chosen anew, and the line of the curves before goes with them; ``reference`` is as in
        `set_reference`. ``look`` is the metric's own; without it the chart's stays.

        Raises:
            ValueError: the reference is not finite.
        """
        self._reference = _checked(reference)
        self.look = look or self.look
        self._curves = [Curve(one_line(curve.label), curve.series) for curve in curves]
        self._axis = None
        self.update(force=True)

    def set_reference(self, label: str, value: float | None) -> None:
        """Draw a horizontal line at a value (a predicted peak, say); None removes it.

        Raises:
            ValueError: the value is not finite.
        """
        reference = _checked(None if value is None else (label, value))
        if reference != self._reference:
            self._reference = reference
            self._axis = None  # it was fitted around the other one
            self.update(force=True)

    def update(self, *, force: bool = False) -> bool:
        """Draw again if a series has changed and repaint what differs; return whether anything does."""
        versions = tuple(curve.series.version for curve in self._curves)
        if versions == self._versions and not force:
            return False
        width, height = self.content_size
        if not (width and height):
            self._drawn_for = (-1, -1)  # not shown; what is on the screen next time must be new
            return False
        self._versions = versions
        if self._drawn_for != (width, height):
            self.refresh()  # drawn when it is asked for
            return True
        before, self._rows = self._rows, self._draw(width, height)
        regions = [
            Region(first, y, stop - first, 1)
            for y, (new, old) in enumerate(zip(self._rows, before, strict=True))
            for first, stop in new.changes(old)
        ]
        if regions:
            self.refresh(*regions)
        return bool(regions)

    def drawn(self) -> Drawn | None:
        """Return what is in sight, for an export; None where nothing can be drawn."""
        span = self._span()
        if span is None or self._axis is None:
            return None
        start, stop = self.view.window(span)
        return Drawn(
            title=self.title,
            x=self.x,
            window=(start, stop),
            low=self._axis.low,
            high=self._axis.high,
            log=self._axis.log,
            weight=self.weight,
            curves=[(curve.label, curve.series) for curve in self._curves],
            x_ticks=x_ticks(start, stop, 80, self.x),
            value_ticks=value_ticks(self._axis, 15, unit=self.unit),
            unit=self.unit,
            reference=self._reference,
        )

    def summary(self) -> str:
        """Return the curves in words, one line each."""
        return summarise(self._curves, self.unit) or "no data yet"

    def render_line(self, y: int) -> Strip:
        """Render one row of the chart."""
        width, height = self.content_size
        if self._drawn_for != (width, height):
            self._rows = self._draw(width, height)
            self._drawn_for = (width, height)
        if y >= len(self._rows):
            return Strip.blank(width, self.rich_style)
        style = self.get_component_rich_style
        return Strip([Segment(text, style(COMPONENTS[part])) for text, part in self._rows[y].runs()], width)

    def _draw(self, width: int, height: int) -> list[Line]:
        span = self._span()
        picture = Picture(
            title=self.title,
            curves=self._curves,
            window=None if span is None else self.view.window(span),
            unit=self.unit,
            log=self.log_axis,
            weight=self.weight,
            cursor=self.view.cursor,
            reference=self._reference,
            following=self.view.following,
            whole=self.view.width is None,
            focused=self.has_focus,
            ascii_only=self.ascii_only,
            x=self.x,
            pinned=self.pinned,
        )
        rows, self._axis = draw(picture, width, height, self._axis)
        return rows

    def _span(self) -> Span | None:
        """Return the first and last step of all curves together."""
        spans = [span for curve in self._curves if (span := curve.series.span) is not None]
        if not spans:
            return None
        first, last = min(first for first, _ in spans), max(last for _, last in spans)
        return max(-_FARTHEST, min(first, _FARTHEST)), max(-_FARTHEST, min(last, _FARTHEST))

    def watch_has_focus(self, has_focus: bool) -> None:
        """Say in the title whether keys go here."""
        super().watch_has_focus(has_focus)
        self.update(force=True)

    def action_ask(self, what: str) -> None:
        """Leave it to the screen."""
        self.post_message(self.Asked(self, what))

    def action_log(self) -> None:
        """Switch between logarithmic and linear value axis."""
        self.look.log = not self.look.log
        self.update(force=True)

    def action_smooth(self) -> None:
        """Choose the next weight of the moving average."""
        self.look.smooth()
        self.update(force=True)

    def action_zoom(self, factor: float) -> None:
        """Make the window ``factor`` times as wide."""
        if (span := self._span()) is not None:
            self.view.zoom(factor, span)
            self.update(force=True)

    def action_reset(self) -> None:
        """Show the whole run, following."""
        self.view.reset()
        self.update(force=True)

    def action_cursor(self) -> None:
        """Switch the cursor on, at the newest point in sight, or off."""
        span = self._span()
        if self.view.cursor is not None:
            self.view.cursor = None
        elif span is not None:
            self.view.place_cursor(span, [curve.series for curve in self._curves])
        self.update(force=True)

    def action_pan(self, direction: float) -> None:
        """Move the cursor by a cell or to the next point; without a cursor, the window by a quarter."""
        span = self._span()
        if span is None:
            return
        if self.view.cursor is None:
            self.view.pan(direction, span)
        else:
            start, stop = self.view.window(span)
            reach = (stop - start) / max(1, self.content_size.width)
            self.view.move_cursor(direction, reach, span, [curve.series for curve in self._curves])
        self.update(force=True)

    def action_end(self, direction: float) -> None:
        """Move cursor or window to the first or the newest step."""
        self.action_pan(direction * math.inf)


def _checked(reference: tuple[str, float] | None) -> tuple[str, float] | None:
    if reference is None:
        return None
    label, value = reference
    if not math.isfinite(value):
        raise ValueError(f"reference {label!r}: {value} is not finite")
    return one_line(label), value
