"""The last guard: of all that goes to the terminal, only what Textual itself sends gets there.

Foreign text is sanitised where it enters. If any got past, its control sequences end here: a sequence that the
application has no use for is dropped, whoever sent it. Sequences: ECMA-48 and
https://invisible-island.net/xterm/ctlseqs/ctlseqs.html.
"""

import base64
import contextlib
import os
import re
import select
import signal
import termios
import threading
from collections.abc import Callable
from typing import Any

from textual.drivers.linux_driver import LinuxDriver

from ..sanitise import sanitise

_OURS = re.compile(
    r"\x1b\[(?:[0-9;:]*m"  # colours and attributes
    r"|[0-9]+;[0-9]+H|[0-9]+C"  # cursor to a cell, or on by some
    r"|(?:[0-9]+;[0-9]+)?r|[0-9]+[LM]"  # the scrolling region, lines inserted and deleted in it; see `frames`
    r"|\?(?:7|25|1000|1003|1004|1006|1015|1016|1049|2004|2026|2048)[hl]"  # modes that are set and reset as a pair
    r"|\?(?:2026|2048)\$p|[<>][0-9]*u)"  # questions about modes, the kitty keyboard protocol
)
_STOP_SECONDS = 3.0
_RESET = b"\x1b[?7h\x1b[?1000l\x1b[?1003l\x1b[?1006l\x1b[?1015l\x1b[?2004l\x1b[<u\x1b[?1049l\x1b[?25h\x1b[?1004l"
"""Resets of all that Textual sets: lines wrap, no mouse, no paste marks, kitty's keys, main screen, cursor, focus."""

_LOOKALIKES = {
    "-": "─━┄┅┈┉╌═╴╶▔▁–—−",
    "|": "│┃┆┇┊║╵╷▏▕▎▊⏸",
    "+": "".join(map(chr, (*range(0x250C, 0x254C), *range(0x2552, 0x2574)))) + "±",
    "#": "█▉▋▌▐▓■▪",
    "=": "▀▄▒▅▆▇▂▃≡",
    ".": "░·◌◦⋅",
    "*": "".join(map(chr, (*range(0x2596, 0x25A0), *range(0x2801, 0x2900)))) + "•●◆",
    "o": "○◔□◇◎",
    "<": "←◀◂‹≤↵⏎",
    ">": "→▶▸►›≥",
    "^": "↑▲▴",
    "v": "↓▼▾✓✔",
    "x": "✗✘✕×",
    "%": "◑",
    "!": "◍⚠",
    "~": "…≈",
    "'": "‘’°",
    '"': "“”",
    " ": "\u2800",
}
_TO_ASCII = {ord(drawn): plain for plain, characters in _LOOKALIKES.items() for drawn in characters}
"""Characters drawn with `--ascii`: one for one character, so that nothing moves."""


def guarded(data: str, *, ascii_only: bool = False) -> str:
    """Return the output with everything removed that the application does not send itself."""
    if ascii_only:
        data = data.translate(_TO_ASCII)
    if _OURS.sub("", data).isprintable():  # nothing but text between the sequences: nearly always
        return data
    parts: list[str] = []
    position = 0
    for match in _OURS.finditer(data):
        parts += [sanitise(data[position : match.start()]), match.group()]
        position = match.end()
    parts.append(sanitise(data[position:]))
    return "".join(parts)


class GuardedDriver(LinuxDriver):
    """Textual's Linux driver behind the guard; it also leaves when the terminal no longer takes what is written."""

    ascii_only = False

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)  # pyright: ignore[reportUnknownMemberType]
        self._leave_soon: Callable[[int], None] = app.leave_soon
        self._trusted = False

    def write(self, data: str) -> None:
        """Write what passes the guard."""
        super().write(data if self._trusted else guarded(data, ascii_only=self.ascii_only))

    def copy(self, text: str) -> None:
        """Offer a text to the terminal's clipboard (OSC 52); many terminals refuse it silently."""
        encoded = base64.b64encode(text.encode()).decode()
        self._trusted = True
        try:
            self.write(f"\x1b]52;c;{encoded}\x07")
        finally:
            self._trusted = False

    def start_application_mode(self) -> None:
        """Start as Textual does; leave on signals and on a hang-up that comes without one (nohup, a new session)."""
        leave_on_signals(self._leave_soon)  # first: it keeps the terminal's settings as they were found
        super().start_application_mode()
        threading.Thread(target=self._await_hang_up, name="terminal-hang-up", daemon=True).start()

    def stop_application_mode(self) -> None:
        """Leave the terminal as it was; a terminal that has gone is no reason to fail."""
        with contextlib.suppress(OSError):
            super().stop_application_mode()

    def _run_input_thread(self) -> None:
        try:
            self.run_input_thread()
        except OSError:  # EIO: the terminal has gone
            self._leave_soon(128 + signal.SIGHUP)

    def _await_hang_up(self) -> None:
        """Leave when the terminal hangs up; Textual would read end of file again and again on a busy core."""
        poll = select.poll()
        poll.register(self.fileno, 0)  # POLLHUP and POLLERR are always reported
        poll.poll()
        self._leave_soon(128 + signal.SIGHUP)


def leave_on_signals(leave_soon: Callable[[int], None]) -> None:
    """End the application on SIGHUP, SIGINT and SIGTERM with 128 + N, the terminal restored.

    A plain signal handler, not the event loop's: while the terminal takes no bytes (a stalled SSH link) the loop
    is stalled. Then the terminal's settings are put back directly and the process ends by itself.
    """
    saved = _terminal_settings()

    def leave(number: int, _frame: object) -> None:
        code = 128 + number
        watch = threading.Timer(_STOP_SECONDS, _force, args=(code, saved))
        watch.daemon = True
        watch.start()
        leave_soon(code)

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # Ctrl-C comes as a key, SIGINT from elsewhere
        signal.signal(number, leave)


def _terminal_settings() -> list[Any] | None:
    try:
        return termios.tcgetattr(0)
    except (termios.error, OSError):
        return None


def _force(code: int, saved: list[Any] | None) -> None:
    if saved is not None:
        with contextlib.suppress(termios.error, OSError):
            termios.tcsetattr(0, termios.TCSANOW, saved)
    with contextlib.suppress(OSError):
        os.set_blocking(2, False)
        os.write(2, _RESET)
    os._exit(code)
