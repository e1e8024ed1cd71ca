"""Leaving the application on a signal or a hang-up, at whatever moment: 128 + N, and the terminal as it was found."""

import contextlib
import os
import signal
import termios
import threading
from collections.abc import Callable
from typing import Any

_STOP_SECONDS = 3.0
_RESET = (
    b"\x1b[0m\x1b[?7h\x1b[?1000l\x1b[?1003l\x1b[?1006l\x1b[?1015l\x1b[?1016l\x1b[?2004l\x1b[?2048l\x1b[?2026l"
    b"\x1b[<u\x1b[?1049l\x1b[?25h\x1b[?1004l"
)
"""Resets of all that Textual sets: colours, wrapping, mouse, paste marks, size reports, held frames, kitty's keys, the
alternate screen, the cursor, focus reports."""


class Leaving:
    """Ends the application; where it has not ended after some seconds, ends the process.

    Args:
        leave_soon: ends the application with an exit code; may be called from a signal handler and from a thread.
    """

    def __init__(self, leave_soon: Callable[[int], None]) -> None:
        self._leave_soon = leave_soon
        self._settings: list[Any] | None = None

    def on_signals(self) -> None:
        """Leave on SIGHUP, SIGINT and SIGTERM from now on; call it while the terminal is as it was found.

        Plain signal handlers, not the event loop's: while the terminal takes no bytes (a stalled SSH link) the loop
        is stalled, too.
        """
        with contextlib.suppress(termios.error, OSError):
            self._settings = termios.tcgetattr(0)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # Ctrl-C comes as a key, SIGINT from elsewhere
            signal.signal(number, lambda number, _frame: self.leave(number))

    def leave(self, number: int) -> None:
        """Leave because of a signal, or of a hang-up that came without one."""
        watch = threading.Timer(_STOP_SECONDS, self._force, args=(128 + number,))
        watch.daemon = True
        watch.start()
        self._leave_soon(128 + number)

    def _force(self, code: int) -> None:
        """Put the terminal back directly, as far as it takes bytes, and end the process."""
        if self._settings is not None:
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetattr(0, termios.TCSANOW, self._settings)
        with contextlib.suppress(OSError):
            # opened anew: a file that does not block would be the shell's too
            terminal = os.open(os.ttyname(2), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
            os.write(terminal, _RESET)
        os._exit(code)
