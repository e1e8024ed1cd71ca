"""The x axis in words: ticks of times as people count them, of everything else as of steps; no Textual."""

import math

from ...readers.x_axes import XAxis
from ...units import compact, duration, number
from .axis import Tick, step_label, step_ticks

_TIMES = (1, 2, 5, 10, 15, 30, *(60 * n for n in (1, 2, 5, 10, 15, 30)), *(3600 * n for n in (1, 2, 3, 6, 12)))
_DAY = 86400


def x_ticks(start: float, stop: float, columns: int, axis: XAxis) -> list[Tick]:
    """Return ticks for an axis of so many columns, about one in ten."""
    if axis == "progress":
        return [(value, f"{label}%") for value, label in step_ticks(start, stop, columns)]
    if axis != "time":
        return step_ticks(start, stop, columns)
    least = (stop - start) / max(1, columns // 10)
    days = max(1, math.ceil(least / _DAY))
    step = next((step for step in _TIMES if step >= least), days * _DAY)
    first, last = math.ceil(start / step - 1e-6), math.floor(stop / step + 1e-6)
    return [(index * step, compact(index * step)) for index in range(first, last + 1)]


def x_label(value: float, axis: XAxis) -> str:
    """Return a place in words: ``step 1,000``, ``1 h 05 m``, ``50 %``."""
    match axis:
        case "step":
            return f"step {step_label(value)}"
        case "time":
            return duration(value)
        case "progress":
            return f"{number(value, digits=3)} %"
        case "tokens" | "episodes":
            return f"{step_label(value)} {axis}"


def x_short(value: float, axis: XAxis) -> str:
    """Return a place as shortly as it can be said."""
    match axis:
        case "time":
            return compact(round(value))
        case "progress":
            return f"{number(value, digits=3)}%"
        case _:
            return step_label(value)
