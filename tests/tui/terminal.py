"""The real command in a pseudo-terminal: what it shows, what it sent, and how it leaves the terminal.

Nothing is read but in `pump` and what calls it, so that a terminal which takes no bytes is one that is not asked.
"""

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyte

SOURCES = os.pathsep.join(str(Path(__file__).resolve().parents[2] / part) for part in ("console", "engine"))
COMMAND = (sys.executable, "-m", "stackllama_console")

_UNSET = ("NO_COLOR", "COLUMNS", "LINES", "TEXTUAL", "TEXTUAL_DRIVER", "TMUX", "STY", "LC_ALL", "LC_CTYPE", "COLORTERM")
_MODE = re.compile(rb"\x1b\[\?([0-9;]+)([hl])")
_KITTY = re.compile(rb"\x1b\[([<>])[0-9]*u")
_PATIENCE = 60.0

PASTE, FOCUS, ALTERNATE, CURSOR, WRAP, RESIZES = 2004, 1004, 1049, 25, 7, 2048
MOUSE = (1000, 1002, 1003, 1006, 1015, 1016)


class Terminal:
    """One process and its terminal.

    Args:
        home: the runs' home; settings, state and caches are kept beside it.
        arguments: of the command.
        size: columns and rows.
        command: what is run instead of the console's command.
        controlling: the terminal is the process's own, as in a login; else as under nohup.
        environment: variables to add; None takes one away.

    Attributes:
        data: every byte that was read.
        before: the terminal's settings before the process began.
    """

    def __init__(
        self,
        home: Path,
        *arguments: str,
        size: tuple[int, int] = (80, 24),
        command: Sequence[str] = COMMAND,
        controlling: bool = True,
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        self.data = b""
        self._fed = 0
        self.screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self.screen)
        self.master, slave = os.openpty()
        self._set_size(*size)
        self.before = termios.tcgetattr(self.master)
        known: dict[str, str | None] = {name: value for name, value in os.environ.items() if name not in _UNSET}
        path = os.pathsep.join(filter(None, (SOURCES, os.environ.get("PYTHONPATH"))))
        known |= {"PYTHONPATH": path, "TERM": "xterm-256color", "LANG": "C.UTF-8", "STACKLLAMA_HOME": str(home)}
        known |= {f"XDG_{name}_HOME": str(home.parent / name.lower()) for name in ("STATE", "CONFIG", "CACHE", "DATA")}
        known |= {"HOME": str(home.parent), **(environment or {})}
        self.process = subprocess.Popen(
            [*command, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={name: value for name, value in known.items() if value is not None},
            preexec_fn=_own_terminal if controlling else None,
        )
        os.close(slave)

    # what comes

    def pump(self, seconds: float = 0.05) -> int:
        """Read what is there, waiting at most so long for the first of it; return the number of bytes."""
        count = 0
        while self.master >= 0 and select.select([self.master], [], [], 0 if count else seconds)[0]:
            try:
                block = os.read(self.master, 1 << 16)
            except OSError:  # EIO: nobody has it open any more
                if not count:
                    time.sleep(min(seconds, 0.02))
                break
            self.data += block
            count += len(block)
        return count

    def until(self, condition: Callable[[], Any], seconds: float = _PATIENCE) -> None:
        """Read until a condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"never came true; on the screen:\n{self.text()}"
            if not self.pump() and self.process.poll() is not None and not condition():
                raise AssertionError(f"ended with {self.process.returncode}; on the screen:\n{self.text()}")

    def wait_for(self, *texts: str, seconds: float = _PATIENCE) -> None:
        """Read until all of these stand on the screen."""
        self.until(lambda: all(text in self.text() for text in texts), seconds)

    def wait_gone(self, *texts: str) -> None:
        """Read until none of these stands on the screen."""
        self.until(lambda: not any(text in self.text() for text in texts))

    def settle(self, quiet: float = 0.7) -> None:
        """Read until nothing has come for a while."""
        deadline = time.monotonic() + _PATIENCE
        while self.pump(quiet):
            assert time.monotonic() < deadline, "it never came to rest"

    def count_bytes(self, seconds: float) -> int:
        """Return how many bytes come within so many seconds."""
        count, deadline = 0, time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            count += self.pump(left)
        return count

    def text(self) -> str:
        """Return the text on the screen."""
        new, self._fed = self.data[self._fed :], len(self.data)
        # pyte would print the kitty protocol's final byte and take `?…$p` for a designation of character sets.
        self._stream.feed(re.sub(rb"\x1b\[(?:[<>][0-9]*u|\?[0-9;]+\$p)", b"", new))
        return "\n".join(line.rstrip() for line in self.screen.display)

    @property
    def output(self) -> str:
        """Everything that was sent, as text."""
        return self.data.decode("utf-8", errors="replace")

    # what is done

    def send(self, keys: str) -> None:
        """Press keys."""
        os.write(self.master, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        """Resize as a terminal emulator would: SIGWINCH comes from the kernel."""
        self.text()
        self.screen.resize(rows, columns)
        self._set_size(columns, rows)

    def signal(self, number: signal.Signals) -> None:
        """Send it to the process alone."""
        self.process.send_signal(number)

    def hang_up(self) -> None:
        """Close the terminal."""
        os.close(self.master)
        self.master = -1

    def end(self, seconds: float = _PATIENCE) -> int:
        """Read until the process has ended; return its exit code (negative: died of a signal)."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, (
                f"still alive; on the screen:\n{self.text() if self.master >= 0 else ''}"
            )
            self.pump() if self.master >= 0 else time.sleep(0.02)
        while self.pump(0.0):
            pass
        return self.process.returncode

    def close(self) -> None:
        """End the process in any case."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # how it is left

    @property
    def settings(self) -> list[Any]:
        """The terminal's settings now."""
        return termios.tcgetattr(self.master)

    def modes(self) -> dict[int, bool]:
        """Return the private modes as last set."""
        return {
            int(mode): match[2] == b"h" for match in _MODE.finditer(self.data) for mode in match[1].split(b";") if mode
        }

    def assert_left_clean(self) -> None:
        """Assert that the terminal was left with main screen, cursor shown, no reports, the settings as found."""
        modes = self.modes()
        assert modes.get(ALTERNATE) is False, "the alternate screen is still shown"
        assert modes.get(CURSOR) is True, "the cursor is hidden"
        assert modes.get(WRAP, True), "lines do not wrap"
        assert not any(modes.get(mode, False) for mode in (*MOUSE, PASTE, FOCUS, RESIZES, 2026)), modes
        kinds = [match[1] for match in _KITTY.finditer(self.data)]
        assert kinds.count(b"<") >= kinds.count(b">"), "kitty's keyboard protocol is still on"
        assert self.data.rfind(b"\x1b[?1049l") > self.data.rfind(b"\x1b[?1049h")
        assert self.settings == self.before

    def cpu_seconds(self) -> float:
        """Return the processor time the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
