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
import threading
from collections.abc import Mapping
from typing import Any

from textual.drivers.linux_driver import LinuxDriver

from ..sanitise import one_line, sanitise
from .leaving import Leaving

_OURS = re.compile(
    r"\x1b\[(?:[0-9;:]*m"  # colours and attributes
    r"|[0-9]+;[0-9]+H|[0-9]+C"  # cursor to a cell, or on by some
    r"|(?:[0-9]+;[0-9]+)?r|[0-9]+[LM]"  # the scrolling region, lines inserted and deleted in it; see `frames`
    r"|\?(?:7|25|1000|1003|1004|1006|1015|1016|1049|2004|2026|2048)[hl]"  # modes that are set and reset as a pair
    r"|\?(?:2026|2048)\$p|[<>][0-9]*u)"  # questions about modes, the kitty keyboard protocol
)
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
_LONGEST_ANNOUNCEMENT = 200
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


def announcement(text: str, environment: Mapping[str, str]) -> str:
    """Return a bell and the sequence with which the terminal shows a text on the desktop, as far as it is known.

    OSC 777 is understood by rxvt, foot and terminals of VTE, OSC 9 by most others (iTerm2, kitty, WezTerm, Ghostty,
    Windows Terminal); sent both, some would show it twice. What is not understood is ignored; the Linux console is
    spared.
    """
    term = environment.get("TERM", "")
    if term.startswith("linux"):
        return "\x07"
    shown = one_line(text).replace(";", ",")[:_LONGEST_ANNOUNCEMENT]  # a `;` would begin another parameter
    if term.startswith(("rxvt", "foot")) or "VTE_VERSION" in environment:
        return f"\x07\x1b]777;notify;stackllama-console;{shown}\x07"
    return f"\x07\x1b]9;{shown}\x07"


class GuardedDriver(LinuxDriver):
    """Textual's Linux driver behind the guard; it also leaves when the terminal no longer takes what is written."""

    ascii_only = False

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)  # pyright: ignore[reportUnknownMemberType]
        self._leaving = Leaving(app.leave_soon)
        self._trusted = False
        self._awaits_hang_up = False

    def write(self, data: str) -> None:
        """Write what passes the guard."""
        super().write(data if self._trusted else guarded(data, ascii_only=self.ascii_only))

    def copy(self, text: str) -> None:
        """Offer a text to the terminal's clipboard (OSC 52); many terminals refuse it silently."""
        encoded = base64.b64encode(text.encode()).decode()
        self._write_own(f"\x1b]52;c;{encoded}\x07")

    def announce(self, text: str) -> None:
        """Ring the bell, and let the terminal notify the desktop where it can."""
        self._write_own(announcement(text, os.environ))

    def _write_own(self, data: str) -> None:
        """Write sequences that the guard would drop, of which no part is foreign."""
        self._trusted = True
        try:
            self.write(data)
        finally:
            self._trusted = False

    def start_application_mode(self) -> None:
        """Start as Textual does; leave on signals and on a hang-up that comes without one (nohup, a new session)."""
        self._leaving.on_signals()  # first: it keeps the terminal's settings as they were found
        super().start_application_mode()
        if not self._awaits_hang_up:  # started again after another program had the terminal
            self._awaits_hang_up = True
            threading.Thread(target=self._await_hang_up, name="terminal-hang-up", daemon=True).start()

    def stop_application_mode(self) -> None:
        """Leave the terminal as it was; a terminal that has gone is no reason to fail."""
        with contextlib.suppress(OSError):
            super().stop_application_mode()

    def suspend_application_mode(self) -> None:
        """Give the terminal to another program, and Ctrl-C with it."""
        super().suspend_application_mode()
        signal.signal(signal.SIGINT, _take_no_notice)  # not ignored: the other program would inherit that

    def _run_input_thread(self) -> None:
        try:
            self.run_input_thread()
        except OSError:  # EIO: the terminal has gone
            self._leaving.leave(signal.SIGHUP)

    def _await_hang_up(self) -> None:
        """Leave when the terminal hangs up; Textual would read end of file again and again on a busy core."""
        poll = select.poll()
        poll.register(self.fileno, 0)  # POLLHUP and POLLERR are always reported
        poll.poll()
        self._leaving.leave(signal.SIGHUP)


def _take_no_notice(_number: int, _frame: object) -> None:
    """Handle a signal by doing nothing."""
