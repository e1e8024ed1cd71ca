"""A run is created and started as a whole: a signal to whoever starts it waits until it is."""

import contextlib
import signal
import threading
from collections.abc import Generator

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def uninterrupted() -> Generator[None]:
    """Hold SIGINT, SIGTERM and SIGHUP back; the first that came does what it does when the block is over.

    In another thread than the main one it changes nothing: signals do not interrupt those.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    kept = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in kept:
        signal.signal(number, lambda number, _frame: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(signal.Signals(arrived[0]))
