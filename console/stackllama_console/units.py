"""Numbers as a person reads them: metrics, durations, bytes. One place for the command line and the screens.

Times have one form per purpose: `duration` for what was measured or is left (``3 m 05 s``), `span` for how long ago in
a sentence (``3 days``), `compact` and, in one unit, `age` for tables and axes (``3m05s``, ``3m``).
"""

import math
import re

from stackllama_engine.contract.metrics import Unit

_LONGEST = 8
_LEAST_PLAIN = 1e-3
_DIGITS = 4
_RATE_DIGITS = 3
_NOTHING = 1e-6
"""Below this share of what it stands beside, a value is rounding noise."""
_SCALES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_UNITS = r"%|°C|[kKMGT]?i?B|[smhd]|W|MHz|steps?/s|s/step|tokens/s"
_PARTS = re.compile(
    rf"(?<=[\dkMG]) (?=(?:{_UNITS})(?!\w))"  # 1.2 GiB, 15.3k tokens/s
    r"|(?<=\d [mhd]) (?=\d\d [smh]\b)"  # 3 m 05 s
    r"|(?<=\d [smhd]) (?=– \d)|(?<=–) (?=\d)"  # 40 s – 1 m 05 s
)
"""Spaces between a number and its unit, between the two parts of a duration, and around the dash of a range."""
NO_BREAK = "\ufdd0"
"""Stands for a space at which no line is broken; of one column, and no character of any text."""
_WORDS: dict[str, str] = {"number": "", "bytes": "", "seconds": " s"}


def cut(text: str, size: int) -> str:
    """Cut a text to at most ``size`` columns, with an ellipsis where it was cut."""
    return text if len(text) <= size else text[: max(0, size - 1)] + "…" * (size > 0)


def unbroken(text: str) -> str:
    """Return a text of the same length in which no line is broken within a quantity: ``1.2 GiB``, ``3 m 05 s``."""
    return _PARTS.sub(NO_BREAK, text)


def number(value: float | None, unit: Unit = "number", *, beside: float = 0.0, digits: int = _DIGITS) -> str:
    """Format a metric in at most eight characters, bytes apart: four significant digits, thousands separated.

    ``1,235``, ``1.235M``, ``0.0012``, ``1.4e-5``; tokens per second as ``15.3k``. Next to something that is a
    million times as large (``beside``) it is ``0``.
    """
    if value is None or math.isnan(value):
        return "nan"
    if unit == "bytes":
        return size(value)
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if abs(value) <= abs(beside) * _NOTHING:
        return "0"
    if unit == "tokens/s":
        return _scaled(value, _RATE_DIGITS)
    rounded = float(f"{value:.{digits}g}") if digits < _DIGITS else value
    return _plain(rounded if math.isfinite(rounded) else value)


def quantity(value: float | None, unit: Unit = "number", *, beside: float = 0.0) -> str:
    """Format a metric with its unit: ``15.3k tokens/s``, ``1.2 s``, ``3.1 GiB``."""
    return number(value, unit, beside=beside) + _WORDS.get(unit, f" {unit}")


def fixed(value: float, places: int) -> str:
    """Format with so many decimals, so that columns stand under each other; no ``-0.000``, large values as `number`."""
    if abs(value) >= 1000:
        return number(value)
    text = f"{value:.{places}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def exponent(value: float, digits: int) -> str:
    """Format as ``1.4e-5``, with at most so many decimals."""
    mantissa, _, power = f"{value:.{digits}e}".partition("e")
    return f"{trimmed(mantissa)}e{int(power)}"


def trimmed(text: str) -> str:
    """Return a decimal number without the zeros at its end."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def _plain(value: float) -> str:
    value = float(value)
    magnitude = abs(value)
    if 999_999.5 <= magnitude < 1e15:
        return _scaled(value, _DIGITS)
    if magnitude < 1e6 and (magnitude >= 999.95 or value.is_integer()):
        return f"{value + 0.0:,.0f}"  # no -0
    if magnitude < _LEAST_PLAIN:
        return _exponent(value)
    if 0.01 <= magnitude < 10:
        return trimmed(f"{value:.4f}")
    texts = (f"{value:.{digits}g}" for digits in (_DIGITS, _DIGITS - 1))
    return next((text for text in texts if "e" not in text and len(text) <= _LONGEST), _exponent(value))


def _exponent(value: float) -> str:
    texts = (exponent(value, digits) for digits in range(_DIGITS - 1, -1, -1))
    return next(text for text in texts if len(text) <= _LONGEST)


def _scaled(value: float, digits: int) -> str:
    """Format with ``k``, ``M`` or ``G``, in so many significant digits."""
    rounded = float(f"{value:.{digits}g}")
    if abs(rounded) >= 1e15:
        return _exponent(value)
    for scale, name in _SCALES:
        if abs(rounded) >= scale:
            share = rounded / scale
            return (f"{share:.0f}" if abs(share) >= 1000 else f"{share:.{digits}g}") + name
    return _plain(rounded)


def duration(seconds: float) -> str:
    """Format seconds as ``45 s``, ``3 m 05 s``, ``2 h 07 m`` or ``4 d 03 h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def size(count: float) -> str:
    """Format bytes in the unit a person would use (powers of 1024)."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def span(seconds: float) -> str:
    """Format seconds in words, in the largest whole unit: ``3 days``, ``1 hour``, ``20 minutes``."""
    for unit, length in (("day", 86400), ("hour", 3600)):
        if (count := int(seconds // length)) > 0:
            return f"{count:,} {unit}{'s' * (count > 1)}"
    return f"{max(1, int(seconds // 60))} minute{'s' * (seconds >= 120)}"


def compact(seconds: float) -> str:
    """Format seconds as ``45s``, ``10m``, ``1h30m`` or ``2d3h``: at most two units, the second where it is not 0."""
    minutes, second = divmod(int(abs(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        text = f"{days}d{hour}h" if hour else f"{days}d"
    elif hours:
        text = f"{hours}h{minute:02d}m" if minute else f"{hours}h"
    elif minutes:
        text = f"{minutes}m{second:02d}s" if second else f"{minutes}m"
    else:
        text = f"{second}s" if second else "0"
    return f"-{text}" if seconds < 0 and text != "0" else text


def age(seconds: float) -> str:
    """Format seconds as ``12s``, ``5m``, ``3h`` or ``2d``, in the largest whole unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(seconds)}s"
