"""A chart in words, for those who cannot read charts."""

import math
from collections.abc import Iterable, Sequence

from stackllama_engine.contract.metrics import Unit

from ...readers.series import Series
from ...sanitise import one_line
from ...units import quantity
from .axis import step_label
from .chart_picture import Curve, none_finite

_FLAT = 0.02
_HALVES = 10  # points from which on halves are compared; with fewer, the last with the first
_TENTHS = 100  # points from which on a tenth, ten points, tells where it has been going lately
_TENTH = 20  # points from which on the last tenth is more than the last point
_SAMPLED = 1000
_SURE = 2.0  # standard errors


def summarise(curves: Iterable[Curve], unit: Unit = "number") -> str:
    """Return one line per curve: first, last, extremes, mean of the last tenth, trend, values not finite."""
    return "\n".join(f"{one_line(curve.label) or 'unnamed'}: {_words(curve.series, unit)}" for curve in curves)


def trend(values: Sequence[float]) -> str:
    """Return the trend of two or more values, and what it was told from.

    Flat is a change below 2 % of all that the values span or, between the means of parts, one within two standard
    errors: what chance alone would do.
    """
    count = len(values)
    if count < _HALVES:
        change = values[-1] / 2 - values[0] / 2  # halved against overflow
        flat = abs(change) <= _FLAT * (max(values) / 2 - min(values) / 2)
        return f"{_direction(change, flat=flat)} from first to last"
    extremes = min(values), max(values)
    text = f"{_compared(values, count // 2, extremes)}, second half against first"
    if count >= _TENTHS:
        text += f"; lately {_compared(values, count // 10, extremes)}, last tenth against the one before"
    return text


def _compared(values: Sequence[float], count: int, extremes: tuple[float, float]) -> str:
    """Compare the last ``count`` values with as many before them; of very many, evenly spaced ones."""
    stride = -(-count // _SAMPLED)
    peak = max(map(abs, extremes)) or 1.0
    newest, older = (
        [value / peak for value in part[::stride]] for part in (values[-count:], values[-2 * count : -count])
    )
    change = _mean(newest) - _mean(older)
    error = math.sqrt(_variance(newest) / len(newest) + _variance(older) / len(older))
    spread = extremes[1] / peak - extremes[0] / peak
    return _direction(change, flat=abs(change) <= max(_FLAT * spread, _SURE * error))


def _direction(change: float, *, flat: bool) -> str:
    return "flat" if flat else "rising" if change > 0 else "falling"


def _mean(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return mean if math.isfinite(mean) else sum([value / len(values) for value in values])


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return sum([(value - mean) ** 2 for value in values]) / (len(values) - 1)


def _words(series: Series, unit: Unit) -> str:
    gaps = f", {len(series.gaps)} not finite" if len(series.gaps) else ""
    values, span = series.values[:], series.span  # a copy: another thread may append or rewind
    point = series.nearest(math.inf)
    if not values or span is None or point is None:
        return none_finite(len(series.gaps)) if gaps else "no data yet"
    if len(values) == 1:
        return f"one point, {quantity(values[0], unit)} at step {step_label(point[0])}{gaps}"
    summary = {"first": values[0], "last": values[-1], "min": min(values), "max": max(values)}
    if len(values) >= _TENTH:
        summary["mean of the last tenth"] = _mean(values[-(len(values) // 10) :])
    beside = max(abs(summary["min"]), abs(summary["max"]))
    text = ", ".join(f"{name} {quantity(value, unit, beside=beside)}" for name, value in summary.items())
    steps = f"steps {step_label(span[0])} to {step_label(span[1])}"
    return f"{text}, {trend(values)}{gaps}; {steps}, {len(values):,} points"
