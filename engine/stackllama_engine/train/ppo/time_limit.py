"""A limit of time for code of the user's, which may hang in a service or in a regular expression.

By a timer signal: it interrupts the call itself, where a thread would continue, hold what the next try needs, and run
with a state of its own (gradients, signal handlers). Code that never returns from C is not interrupted; neither is code
that sets the same timer (``signal.alarm``), which then has the limit that it sets.
"""

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class TimeLimitError(BaseException):
    """A call took too long; no :class:`Exception`, which the called code may catch."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Limit the time of a block, on the main thread; infinite: no limit.

    Raises:
        TimeLimitError: the block took longer.
    """
    if math.isinf(seconds):
        yield
        return

    def expire(signum: int, frame: Any) -> None:
        raise TimeLimitError(seconds)

    before = signal.signal(signal.SIGALRM, expire)
    other = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *other)
