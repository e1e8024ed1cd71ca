"""Numeric environment variables of launches and supervisors: read where used, checked before anything is started."""

import math
import os

from .errors import UsageError

HUB_DEADLINE = "STACKLLAMA_HUB_DEADLINE"
NAMES = tuple(
    f"STACKLLAMA_{name}"
    for name in (
        "STOP_GRACE",
        "TERM_GRACE",
        "LINGER",
        "STALL_FACTOR",
        "STALL_FLOOR",
        "STALL_CEILING",
        "STALL_LOAD",
        "DISK_CRITICAL",
        "DISK_WARNING",
        "DISK_PATIENCE",
        "HUB_DEADLINE",
    )
)
"""Their meaning: docs/reliability.md."""


def setting(name: str) -> float | None:
    """Return the value of a variable; None where it is not set.

    Raises:
        UsageError: it is not a number, or negative.
    """
    text = os.environ.get(name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UsageError(f"Environment variable {name}={text!r} must be a non-negative number; fix or unset it.")
    return value


def check_settings() -> None:
    """Check every variable of `NAMES`.

    Raises:
        UsageError: one is not a non-negative number.
    """
    for name in NAMES:
        setting(name)
