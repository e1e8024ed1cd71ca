"""Axes: ranges that stay put while points arrive, ticks at 1-2-5, labels of at most eight characters; no Textual."""

import math
from collections.abc import Iterable

from msgspec import Struct

from stackllama_engine.contract.metrics import Unit

from ...units import exponent, number, trimmed

Tick = tuple[float, str]
"""Position in data units, label."""

LABEL = 8
_MOST = 1e300
_LEAST = 1e-290
_TIGHT = 2  # rows from one tick to the next: closer, rounding to rows sets them unevenly
_USED = 0.4  # below this share the range is too wide; fresh ranges use at least half, so that none flips back
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_STEPPED = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


class Axis(Struct, frozen=True):
    """The range of a value axis."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Return 0 at the bottom to 1 at the top, clamped; on a log axis what is not positive lies at the bottom."""
        if self.log:
            if value <= 0:
                return 0.0
            share = (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share))

    def holds(self, low: float, high: float) -> bool:
        """Return whether data from ``low`` to ``high`` lies inside and uses enough of the range."""
        return self.low <= low and high <= self.high and self.place(high) - self.place(low) >= _USED


def nice(value: float) -> float:
    """Return the smallest of 1, 2, 5 × 10^k that is not below a positive value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next((power * digit for digit in (1, 2, 5) if power * digit >= value * (1 - 1e-9)), power * 10)


def value_axis(low: float, high: float, held: Axis | None = None, *, unit: Unit = "number") -> Axis:
    """Return a linear axis around the data: the one held while it will do, else grown outwards to whole steps."""
    low, high = (min(_MOST, max(-_MOST, value)) for value in (low, high))
    if held is not None and not held.log and held.holds(low, high):
        return held
    if high - low <= max(max(abs(low), abs(high)) * 1e-12, _LEAST):  # constant; a fifth of less may round to 0
        pad = abs(high) * 0.1
        low, high = (low - pad, high + pad) if pad > _LEAST else (low - 1, high + 1)
    scale = _binary(max(abs(low), abs(high)))[0] if unit == "bytes" else 1.0
    step = nice((high - low) / scale / 5) * scale
    return Axis(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step)


def log_axis(low: float, high: float, held: Axis | None = None) -> Axis:
    """Return a log10 axis around positive data, from one of 1, 2, 5 × 10^k to another."""
    low, high = (min(_MOST, max(_LEAST, value)) for value in (low, high))
    if held is not None and held.log and held.holds(low, high):
        return held
    bottom, top = 1 / nice(1 / low), nice(high)
    if bottom >= top * (1 - 1e-9):
        bottom, top = bottom / 2, top * 2
    return Axis(bottom, top, log=True)


def value_ticks(axis: Axis, rows: int, *, unit: Unit = "number") -> list[Tick]:
    """Return ticks for an axis of so many rows, from the bottom up, about one in three rows.

    From two rows on there are at least two, however low the plot: the axis' ends where no steps fit.
    """
    if axis.log and unit == "bytes":
        return _log_bytes_ticks(axis, max(1, rows // 2))
    if axis.log:
        return [(value, _log_label(value)) for value in _log_ticks(axis, max(1, rows // 2))]
    scale, name = _binary(max(abs(axis.low), abs(axis.high))) if unit == "bytes" else (1.0, "")
    values, step = _value_steps(axis, rows, scale)
    if unit == "bytes":
        places = _places(step / scale, 2)
        return [(value, _bytes_label(value / scale, places, name)) for value in values]
    return list(zip(values, _labels(values, step), strict=True))


def _value_steps(axis: Axis, rows: int, scale: float) -> tuple[list[float], float]:
    """Return (tick values, their step): the widest step that leaves two, at least a row apart; else the ends."""
    length = axis.high - axis.low
    step = nice(length / scale / max(1, rows // 3)) * scale
    while True:
        values = list(_multiples(axis.low, axis.high, step))
        if step * (rows - 1) < _TIGHT * length:
            wider = list(_multiples(axis.low, axis.high, 2 * step))
            values, step = (wider, 2 * step) if len(wider) > 1 else (values, step)
        if len(values) > 1 or (values and rows < 2):
            return values, step
        step = nice(step / scale / 2.5) * scale
        if step * (rows - 1) < length:
            ends = [axis.low, axis.high] if rows > 1 else [axis.low]
            return ends, nice(length / scale / 10) * scale


def step_range(first: float, last: float) -> tuple[float, float]:
    """Return a step range that shows everything: whole steps outwards, up to a fifth of it still empty.

    A single step lies in the middle.
    """
    if first == last:
        return first - 0.5, first + 0.5
    if last - first < 1:
        return first, first + 1
    step = nice((last - first) / 10)
    return min(first, math.floor(first / step) * step), max(last, math.ceil(last / step) * step)


def step_ticks(start: float, stop: float, columns: int) -> list[Tick]:
    """Return ticks for a step axis of so many columns, about one in ten."""
    step = max(1.0, nice((stop - start) / max(1, columns // 10)))
    return [(value, step_label(value, step)) for value in _multiples(start, stop, step)]


def step_label(value: float, step: float = 1.0) -> str:
    """Return a step as ``750``, ``1.5k`` or ``2M``, where the distance between ticks allows that, else in full."""
    for size, name in _STEPPED:
        places = _places(step / size, 9)
        if size <= abs(value) < size * 1e5 and places <= (1 if size == 1e3 else 2):
            return trimmed(f"{value / size:.{places}f}") + name
    return trimmed(f"{value:,.2f}") if abs(value) < 1e8 else number(value)


def _bytes_label(value: float, places: int, name: str) -> str:
    texts = (f"{value:.{count}f} {name}" for count in range(places, -1, -1))
    return next((text for text in texts if len(text) <= LABEL), number(value))


def _log_label(value: float) -> str:
    return step_label(value, value) if 1e4 <= value < 1e15 else number(value)


def _labels(values: list[float], step: float) -> list[str]:
    """Return labels with the same number of decimals, so that they line up."""
    most = max(map(abs, values), default=0.0)
    if most and (most < 1e-3 or most >= 1e15):
        digits = min(3, max(0, math.floor(math.log10(most)) - math.floor(math.log10(step) + 1e-9)))
        return ["0" if value == 0 else _fitting(exponent(value, digits), value) for value in values]
    fitting = ((size, name) for size, name in _STEPPED if most >= (1e4 if size == 1e3 else size))
    size, name = next(fitting, (1.0, ""))
    places = _places(step / size, 6)
    return [_fitting("0" if value == 0 and name else f"{value / size:,.{places}f}{name}", value) for value in values]


def _fitting(text: str, value: float) -> str:
    return text if len(text) <= LABEL else number(value)


def _places(step: float, most: int) -> int:
    """Return the decimals needed to tell multiples of a step of 1, 2, 5 × 10^k apart."""
    return min(most, max(0, -math.floor(math.log10(step) + 1e-9)))


def _multiples(low: float, high: float, step: float) -> Iterable[float]:
    for index in range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1):
        yield index * step


def _log_ticks(axis: Axis, most: int) -> list[float]:
    """Return decades, thinned until they fit; with room to spare also 2 and 5."""
    first = math.floor(math.log10(axis.low) + 1e-9)
    last = math.ceil(math.log10(axis.high) - 1e-9)
    inside = (axis.low * (1 - 1e-9), axis.high * (1 + 1e-9))
    fine = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
    fine = [value for value in fine if inside[0] <= value <= inside[1]]
    if len(fine) <= most:
        return fine
    decades = [value for power in range(first, last + 1) if inside[0] <= (value := 10.0**power) <= inside[1]]
    thinned = decades[:: math.ceil(len(decades) / most)] if decades else []
    return thinned if len(thinned) > 1 else decades[:: len(decades) - 1] if len(decades) > 1 else fine[:: len(fine) - 1]


def _log_bytes_ticks(axis: Axis, most: int) -> list[Tick]:
    """Return powers of two, thinned until they fit; the axis' ends where fewer than two lie inside."""
    first, last = math.ceil(math.log2(axis.low) - 1e-9), math.floor(math.log2(axis.high) + 1e-9)
    every = max(1, math.ceil((last - first + 1) / most))
    values = [2.0**power for power in range(first, last + 1, every)]
    values = values if len(values) > 1 else [axis.low, axis.high][: max(1, most)]
    ticks: list[Tick] = []
    for value in values:
        scale, name = _binary(value)
        share = value / scale
        ticks.append((value, _bytes_label(share, 0 if share >= 10 or share.is_integer() else 1, name)))
    return ticks


def _binary(most: float) -> tuple[float, str]:
    """Return (bytes, name) of the unit that a number of bytes is written in."""
    power = 0
    while power < len(_BINARY) - 1 and most >= 1024 ** (power + 1):
        power += 1
    return 1024.0**power, _BINARY[power]
