"""A block that signals do not interrupt: a run is created and started as a whole."""

import contextlib
import signal
import threading
from collections.abc import Generator

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def uninterrupted() -> Generator[None]:
    """Defer SIGINT, SIGTERM and SIGHUP; the first one that arrives is raised after the block.

    Outside the main thread it changes nothing: signals do not interrupt other threads.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    deferred = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in deferred:
        signal.signal(number, lambda number, _frame: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in deferred.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(signal.Signals(arrived[0]))
