"""Numbers as a person reads them: metrics, durations, bytes. One place for the command line and the screens."""


def cut(text: str, size: int) -> str:
    """Cut a text to at most ``size`` columns, with an ellipsis where it was cut."""
    return text if len(text) <= size else text[: max(0, size - 1)] + "…" * (size > 0)


def number(value: float | None) -> str:
    """Format a metric in at most eight characters: four significant digits, no exponent where none is needed."""
    if value is None:
        return "nan"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4f}".rstrip("0") if 0.01 <= abs(value) < 10 else f"{value:.4g}"


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


def age(seconds: float) -> str:
    """Format seconds as ``12s``, ``5m``, ``3h`` or ``2d``, in the largest whole unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(seconds)}s"
