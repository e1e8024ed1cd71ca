"""The content of a chart: curves and everything else its appearance depends on besides its size."""

from collections.abc import Sequence

from msgspec import Struct

from stackllama_engine.contract.metrics import Unit

from ...readers.series import Series
from ...readers.x_axes import XAxis
from .axis import Tick

SIGNS = {"up": "│┤└─┬╌▸·┄", "ascii": "|++-+->|-"}
"""Value axis, its ticks, corner, step axis, its ticks, (unused), focus, between flags, reference; plain ones."""


class Curve(Struct, frozen=True):
    """A series and what to call it; the label is foreign text, made safe and plain by the chart."""

    label: str
    series: Series


class Picture(Struct, kw_only=True):
    """Everything a chart's appearance depends on besides its size."""

    title: str
    curves: list[Curve]
    """Labels already sanitised."""
    window: tuple[float, float] | None
    """First and last step shown; None when there is nothing to show yet."""
    unit: Unit = "number"
    log: bool = False
    weight: float = 0.0
    cursor: float | None = None
    reference: tuple[str, float] | None = None
    following: bool = True
    whole: bool = True
    focused: bool = False
    ascii_only: bool = False
    x: XAxis = "step"
    pinned: bool = False

    @property
    def largest(self) -> float:
        """The largest magnitude in the window, beside which noise counts as 0; 0 on a log axis, which shows all."""
        if self.window is None or self.log:
            return 0.0
        spans = [curve.series.columns(*self.window, 1)[0] for curve in self.curves]
        return max((abs(end) for span in spans if span for end in span), default=0.0)


class Drawn(Struct, frozen=True, kw_only=True):
    """A chart as it is in sight.

    Attributes:
        x: what the x axis is.
        window: its first and last place.
        low: of the value axis; ``high`` likewise.
        log: whether that is logarithmic.
        weight: of the moving average that is drawn; 0: none.
        curves: (label, series) each.
        unit: of their values.
        reference: label and value of a horizontal line.
    """

    title: str
    x: str
    window: tuple[float, float]
    low: float
    high: float
    log: bool
    weight: float
    curves: Sequence[tuple[str, Series]]
    x_ticks: Sequence[Tick]
    value_ticks: Sequence[Tick]
    unit: Unit = "number"
    reference: tuple[str, float] | None = None


def none_finite(count: int) -> str:
    """Return what to say of so many values, one or more, none of which can be drawn."""
    return "the only value is NaN or infinite" if count == 1 else f"all {count} values NaN or infinite"
