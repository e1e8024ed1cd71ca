"""Checkpoints by time: a power cut costs minutes, however long the steps are.

Rank 0 keeps the time, and its wish travels with the requests that all ranks agree on (:mod:`.control`). The first
checkpoint of an attempt comes within the first minutes: by then the optimizer has its state, so that it shows what
every later one takes, and what could not be saved is learnt early. Saves so slow that they would eat the run come less
often.
"""

import time
from collections.abc import Callable

from .reporting import Reporter

FIRST_SECONDS = 120.0
"""Seconds until the first checkpoint of an attempt is due, unless `save_minutes` is even shorter."""
MOST_SHARE = 0.05
"""Largest share of the time that checkpoints by time may take."""
_UNITS = ((1 << 30, "GiB", 1), (1 << 20, "MiB", 0), (1 << 10, "KiB", 0))


class SaveTimer:
    """Timer of the next checkpoint, and of what they cost; it starts when it is made.

    Args:
        minutes: between two of them, whoever asked for the one before; 0: never.
        reporter: gets one notice of what a checkpoint takes.
        clock: monotonic seconds.
    """

    def __init__(self, minutes: float, reporter: Reporter, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 60 * minutes
        self._wait = min(self._interval, FIRST_SECONDS)
        self._reporter = reporter
        self._clock = clock
        self._since = self._begun = clock()
        self._step: int | None = None
        self._reported_cost = self._reported_slow = False

    def due(self, step: int) -> bool:
        """Return whether to save after ``step`` steps; not twice after the same one, however long a pause takes."""
        return self._interval > 0 and step != self._step and self._clock() - self._since >= self._wait

    def begin(self) -> None:
        """Note that a save begins, for whatever reason."""
        self._begun = self._clock()

    def end(self, step: int, size: int | None, *, last: bool = False) -> None:
        """Note that it ended; the next one is due a whole interval from now.

        Args:
            step: steps done.
            size: its bytes; None: it failed.
            last: the run stops, and nobody waits for another.
        """
        self._since = now = self._clock()
        self._step = step
        if size is None:
            return
        seconds = now - self._begun
        self._wait = max(self._interval, seconds / MOST_SHARE)
        slow = self._interval > 0 and self._wait > self._interval
        if not last and (not self._reported_cost or (slow and not self._reported_slow)):
            self._reported_slow |= slow
            self._reported_cost = True
            self._reporter.health(f"a checkpoint takes {_seconds(seconds)} and {_bytes(size)}{self._share(seconds)}")

    def _share(self, seconds: float) -> str:
        if not self._interval:
            return ""
        if self._wait > self._interval:
            return (
                f", more than {MOST_SHARE:.0%} of the {_minutes(self._interval)} of `save_minutes`: one is now "
                f"written every {_minutes(self._wait)}"
            ).replace("%", " %")
        return f": {100 * seconds / self._interval:.2g} % of the time at one every {_minutes(self._interval)}"


def _minutes(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.3g} {'minute' if minutes == 1 else 'minutes'}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"


def _bytes(count: int) -> str:
    unit, name, digits = next((each for each in _UNITS if count >= each[0]), _UNITS[-1])
    return f"{count / unit:.{digits}f} {name}"
