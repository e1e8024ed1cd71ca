"""Numbers that the environment sets for supervisors: read where they are used, checked before anything is started."""

import math
import os

from ..contract.errors import UsageError

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
    )
)
"""Their meaning: docs/reliability.md."""


def setting(name: str) -> float | None:
    """Its value; None where it is not set.

    Raises:
        UsageError: it is no number, or less than 0.
    """
    given = os.environ.get(name)
    if not given:
        return None
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UsageError(f"The environment's {name}={given!r} is no number from 0 on; mend it or unset it.")
    return value


def check_settings() -> None:
    """Look at all of them.

    Raises:
        UsageError: one is wrong.
    """
    for name in NAMES:
        setting(name)
