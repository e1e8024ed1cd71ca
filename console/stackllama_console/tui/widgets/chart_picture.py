"""The content of a chart: curves and everything else its appearance depends on besides its size."""

from msgspec import Struct

from ...readers.series import Series
from ...units import size
from .axis import Unit, short

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


def figure(value: float, unit: Unit, digits: int | None = None) -> str:
    """Return a value as the legend shows it, in so many significant digits at most where it is a plain number."""
    if unit == "bytes":
        return size(value)
    return short(value if digits is None else float(f"{value:.{digits}g}"))


def none_finite(count: int) -> str:
    """Return what to say of so many values, one or more, none of which can be drawn."""
    return "the only value is NaN or infinite" if count == 1 else f"all {count} values NaN or infinite"
