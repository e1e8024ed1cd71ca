"""Handling of signals before a command's work has begun, and after: end at once, quietly, with 128 + N.

Python would raise KeyboardInterrupt wherever it is, most likely in the middle of an import, print a traceback, or lose
the interrupt in a module that is being loaded. There is nothing to restore on the terminal or the disk then.
"""

import contextlib
import os
import signal
from collections.abc import Generator

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def leave_at_once() -> None:
    """Exit at once on a signal from now on; one that is ignored (nohup, a background job) stays ignored."""
    for number in _NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)


@contextlib.contextmanager
def interruptible() -> Generator[None]:
    """Let Ctrl-C raise KeyboardInterrupt meanwhile, as commands expect that clean up before they end."""
    before = signal.getsignal(signal.SIGINT)
    if before is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if before is _leave:
            signal.signal(signal.SIGINT, _leave)


def _leave(number: int, _frame: object) -> None:
    os._exit(128 + number)
