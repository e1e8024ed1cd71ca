"""The time that screens show ages by."""

import time


def now() -> float:
    """Return Unix seconds; one place, so that tests and screenshots can hold it still."""
    return time.time()
