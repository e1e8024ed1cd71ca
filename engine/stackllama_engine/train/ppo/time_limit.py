"""A limit of time for code of the user's, which may hang in a service or in a regular expression.

By a timer signal: it interrupts the call itself, where a thread would continue, hold what the next try needs, and run
with a state of its own (gradients, signal handlers). Code that never returns from C is not interrupted; neither is code
that sets the same timer (``signal.alarm``), which then has the limit that it sets.

What is awaited has its own limit (``asyncio.timeout``), which acts while the event loop turns; :func:`run_limited`
interrupts what keeps it from turning.
"""

import asyncio
import math
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

_T = TypeVar("_T")
_INTERRUPTIBLE = ContextVar("_INTERRUPTIBLE", default=False)
"""Whether the running task is code of the user's; the tasks that it starts inherit that."""


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

    with _timer(seconds, expire):
        yield


@contextmanager
def interruptible() -> Iterator[None]:
    """Mark a block of a coroutine as one that :func:`run_limited` may interrupt."""
    token = _INTERRUPTIBLE.set(True)
    try:
        yield
    finally:
        _INTERRUPTIBLE.reset(token)


def run_limited(main: Coroutine[Any, Any, _T], seconds: float) -> _T:
    """Run a coroutine as ``asyncio.run`` does, on the main thread; interrupt code that blocks its event loop too long.

    A task sets the timer anew as long as the loop turns. Where it does not, :class:`TimeLimitError` is raised in the
    :func:`interruptible` code that blocks it, and after each further beat in what blocks it next.
    """
    if math.isinf(seconds):
        return asyncio.run(main)
    beat = min(1.0, seconds)

    def expire(signum: int, frame: Any) -> None:
        if _INTERRUPTIBLE.get():
            raise TimeLimitError(seconds)

    async def keep_setting() -> None:
        while True:
            signal.setitimer(signal.ITIMER_REAL, seconds + beat, beat)
            await asyncio.sleep(beat)

    async def watched() -> _T:
        setting = asyncio.create_task(keep_setting())
        try:
            return await main
        finally:
            setting.cancel()

    with _timer(seconds + beat, expire):
        return asyncio.run(watched())


@contextmanager
def _timer(seconds: float, expire: Callable[[int, Any], None]) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, expire)
    other = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *other)
