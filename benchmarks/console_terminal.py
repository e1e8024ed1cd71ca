"""A process in a pseudo-terminal of 120 × 40 whose output is dated and counted as it comes."""

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pyte

BENCHMARKS = Path(__file__).resolve().parent
SOURCES = os.pathsep.join(str(BENCHMARKS.parent / part) for part in ("console", "engine"))
COLUMNS, ROWS = 120, 40
CONSOLE = (sys.executable, "-m", "stackllama_console")
BARE = (sys.executable, str(BENCHMARKS / "console_bare.py"))

_UNSET = ("NO_COLOR", "COLUMNS", "LINES", "TEXTUAL", "TEXTUAL_DRIVER", "TMUX", "STY")
_TICKS = os.sysconf("SC_CLK_TCK")
_PATIENCE = 60.0
_FOREIGN = re.compile(rb"\x1b\[[<>=?][0-9;]*[a-zA-Z$]+")
"""Private modes and keyboard protocols, which pyte would print in part; none of them draws."""


Mark = str | re.Pattern[str]
"""A text, or a pattern of one."""


class Terminal:
    """One process and its terminal. Times are `time.monotonic` seconds, the same clock in every process.

    Args:
        argv: what runs.
        scratch: a folder for its settings and state; its home is named in ``argv``.
        core: the only core it may use; None: any.

    Attributes:
        started: when it was started.
        chunks: (time, bytes) of everything that was read.
    """

    def __init__(self, argv: Sequence[str], scratch: Path, core: int | None = None) -> None:
        self.chunks: list[tuple[float, bytes]] = []
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in _UNSET}
        environment |= {"PYTHONPATH": SOURCES, "TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8"}
        environment |= {
            f"XDG_{name}_HOME": str(scratch / name.lower()) for name in ("STATE", "CONFIG", "CACHE", "DATA")
        }
        self._arrived = threading.Condition()
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self._fed = 0
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [*argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, and wait until it has gone."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        with suppress(ProcessLookupError):  # what it started and left: LEET's launcher does
            os.killpg(self.process.pid, signal.SIGKILL)
        self._reader.join(10)
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    # its output

    def wait_for(self, *marks: Mark, without: Mark | None = None, seconds: float = _PATIENCE) -> float:
        """Wait until all marks are on the screen together and ``without`` is not.

        Returns:
            When the chunk was read that completed it, in `time.monotonic` seconds.

        Raises:
            TimeoutError: they did not within ``seconds``, or the process ended.
        """
        deadline = time.monotonic() + seconds
        while True:
            moment = self._feed_next()
            text = "\n".join(self._screen.display) if moment is not None else ""
            gone = without is None or not _is_in(text, without)
            if moment is not None and gone and all(_is_in(text, mark) for mark in marks):
                return moment
            if time.monotonic() > deadline or (moment is None and self.process.poll() is not None):
                raise TimeoutError(f"{marks} not shown within {seconds:g} s; on the screen:\n{self.text()}")
            if moment is None:
                with self._arrived:
                    self._arrived.wait(0.1)

    def frames(self) -> Iterator[tuple[float, str]]:
        """Yield the screen after each chunk that was not fed before, with the moment it was read."""
        while (moment := self._feed_next()) is not None:
            yield moment, "\n".join(self._screen.display)

    def _feed_next(self) -> float | None:
        if self._fed == len(self.chunks):
            return None
        moment, chunk = self.chunks[self._fed]
        self._fed += 1
        self._stream.feed(_FOREIGN.sub(b"", chunk))
        return moment

    def settle(self, quiet: float = 1.5, seconds: float = _PATIENCE) -> None:
        """Wait until it has written nothing for ``quiet`` seconds, or at most ``seconds``."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            last = self.chunks[-1][0] if self.chunks else self.started
            if time.monotonic() - last >= quiet:
                return
            time.sleep(0.1)

    def bytes_since(self, start: float) -> int:
        """Return how many bytes came from a moment on."""
        return sum(len(chunk) for moment, chunk in self.chunks if moment >= start)

    def text(self) -> str:
        """Return what a terminal would show now."""
        for _ in self.frames():
            pass
        return "\n".join(line.rstrip() for line in self._screen.display)

    def send(self, keys: str) -> float:
        """Press keys, and return when that was."""
        moment = time.monotonic()
        os.write(self._master, keys.encode())
        return moment

    def _read(self) -> None:
        while True:
            if not select.select([self._master], [], [], 0.5)[0]:
                if self.process.poll() is not None:
                    return
                continue
            try:
                chunk = os.read(self._master, 1 << 16)
            except OSError:  # EIO: the other side is closed
                return
            with self._arrived:
                self.chunks.append((time.monotonic(), chunk))
                self._arrived.notify_all()

    # its costs

    def cpu(self, process: int | None = None) -> float:
        """Return the seconds of processor time it has used, or another process that it started."""
        fields = Path(f"/proc/{process or self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def cpu_exact(self) -> float:
        """Return the same of its threads that are alive, to the nanosecond."""
        total = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with suppress(OSError):  # a thread that ends meanwhile
                total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def rss(self) -> int:
        """Return its resident bytes now."""
        return self._status("VmRSS")

    def peak_rss(self) -> int:
        """Return its largest resident bytes so far."""
        return self._status("VmHWM")

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"no {name} of process {self.process.pid}")


def _is_in(text: str, mark: Mark) -> bool:
    return mark in text if isinstance(mark, str) else mark.search(text) is not None
