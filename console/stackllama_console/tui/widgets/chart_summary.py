"""A chart in words, for those who cannot read charts."""

from collections.abc import Iterable, Sequence

from ...feeds.series import Series
from ...sanitise import one_line
from .axis import Unit, step_label
from .chart_rows import Curve, figure

_FLAT = 0.02


def summarise(curves: Iterable[Curve], unit: Unit = "number") -> str:
    """One line a curve: first, last, extremes, mean of the last tenth, where it is going, what was not finite."""
    return "\n".join(f"{one_line(curve.label) or 'unnamed'}: {_words(curve.series, unit)}" for curve in curves)


def trend(series: Series) -> str:
    """rising, falling or flat: the last tenth's mean against the tenth before it.

    Flat is a difference below 2 % of all that the series has spanned.
    """
    count = max(1, len(series) // 10)
    if len(series) < 2:
        return "flat"
    newest, older = series.values[-count:], series.values[-2 * count : -count]
    change = _mean(newest) - _mean(older)
    if abs(change) <= _FLAT * (max(series.values) - min(series.values)):
        return "flat"
    return "rising" if change > 0 else "falling"


def _mean(values: Sequence[float]) -> float:
    return sum(value / len(values) for value in values)  # divided first, so that no sum overflows


def _words(series: Series, unit: Unit) -> str:
    gaps = f", {len(series.gaps)} not finite" if len(series.gaps) else ""
    span = series.span
    if series.first is None or series.last is None or span is None:
        return f"no data yet{gaps}"
    newest = series.values[-max(1, len(series) // 10) :]
    figures = {
        "first": series.first,
        "last": series.last,
        "min": min(series.values),
        "max": max(series.values),
        "mean of the last tenth": _mean(newest),
    }
    text = ", ".join(f"{name} {figure(value, unit)}" for name, value in figures.items())
    return f"{text}, {trend(series)}{gaps}; steps {step_label(span[0])} to {step_label(span[1])}, {len(series)} points"
