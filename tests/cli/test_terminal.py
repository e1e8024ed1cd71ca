"""In a real pseudo-terminal of 80 × 24: bars, colours, and the terminal restored."""

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage

SOURCES = os.pathsep.join(str(Path(__file__).resolve().parents[2] / part) for part in ("console", "engine"))
OWN_SEQUENCES = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[0-9]*[AK]|\r")
"""Colours, cursor hidden and shown, cursor up, line erased: what rich and we send."""


class Terminal:
    def __init__(self, home: Home, *arguments: str, **environment: str) -> None:
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.found = termios.tcgetattr(slave)[3]
        known = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
        known |= {"PYTHONPATH": SOURCES, "TERM": "xterm-256color", "STACKLLAMA_HOME": str(home.path)} | environment
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stackllama_console", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=known,
            start_new_session=True,
        )
        os.close(slave)
        self.data = b""

    def read(self, until: bytes | None = None, seconds: float = 60.0) -> str:
        """Return the output until ``until`` appears, or to the end."""
        deadline = time.monotonic() + seconds
        while until is None or until not in self.data:
            assert time.monotonic() < deadline, self.data
            if not select.select([self.master], [], [], 0.1)[0]:
                continue
            try:
                block = os.read(self.master, 65536)
            except OSError:  # the other side is closed
                break
            if not block:
                break
            self.data += block
        return self.data.decode()

    def end(self) -> tuple[int, str]:
        text = self.read()
        code = self.process.wait(timeout=60)
        os.close(self.master)
        return code, text


@pytest.fixture
def running(make_run: Callable[..., RunDir], write_events: Callable[..., None], payloads: list[str]) -> RunDir:
    run = make_run(Stage.PPO, "one", "running")
    write_events(
        run,
        ("progress", {"step": 12, "total_steps": 60}),
        ("metrics", {"step": 12, "metrics": {"objective/scores": 0.4142, "objective/kl": 1.2}}),
    )
    return run


def test_watch_draws_bars_in_a_terminal(
    home: Home,
    running: RunDir,
    write_events: Callable[..., None],
    payloads: list[str],
    assert_clean: Callable[[str], None],
) -> None:
    terminal = Terminal(home, "runs", "watch", "one")
    assert "scores 0.4142 kl 1.2" in terminal.read(until=b"scores 0.4142")
    write_events(running, *[("health", {"data": {"message": payload}}) for payload in payloads])
    assert "not red" in terminal.read(until=b"[bold red]not red[/bold red]")
    state = msgspec.structs.replace(running.read_state(), phase="stopped", exit_code=75, ended=time.time())
    running.write_state(state)
    code, text = terminal.end()
    assert code == 75
    assert_clean(OWN_SEQUENCES.sub("", text))
    assert "\x1b]" not in text and text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")  # the cursor is back


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_leaving_restores_the_cursor(home: Home, running: RunDir, number: signal.Signals, code: int) -> None:
    terminal = Terminal(home, "runs", "watch", "one")
    terminal.read(until=b"12/60")
    os.killpg(terminal.process.pid, number)
    ended, text = terminal.end()
    assert ended == code and "Traceback" not in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0
    assert not running.read_state().has_ended


@pytest.mark.slow
def test_idle_run_writes_little(home: Home, running: RunDir) -> None:
    terminal = Terminal(home, "runs", "watch", "one")
    terminal.read(until=b"12/60")
    before, until = len(terminal.data), time.monotonic() + 3
    while time.monotonic() < until:
        if select.select([terminal.master], [], [], 0.1)[0]:
            terminal.data += os.read(terminal.master, 65536)
    assert len(terminal.data) - before < 3 * 2048  # bytes in three seconds
    os.killpg(terminal.process.pid, signal.SIGTERM)
    terminal.end()


def test_ls_respects_no_color(home: Home, make_run: Callable[..., Any]) -> None:
    make_run(Stage.SFT, "one", "failed")
    code, text = Terminal(home, "runs", "ls").end()
    assert code == 0 and "\x1b[31mfailed" in text
    code, text = Terminal(home, "runs", "ls", NO_COLOR="1").end()
    assert code == 0 and "\x1b" not in text
    code, text = Terminal(home, "runs", "ls", TERM="dumb").end()
    assert code == 0 and "\x1b" not in text


def test_bars_respect_no_color(home: Home, running: RunDir) -> None:
    terminal = Terminal(home, "runs", "watch", "one", NO_COLOR="1")
    terminal.read(until=b"12/60")
    os.killpg(terminal.process.pid, signal.SIGTERM)
    _, text = terminal.end()
    assert not re.search(r"\x1b\[[0-9;]*3[0-9][0-9;]*m", text)


def test_control_keys_are_not_echoed_while_following(home: Home, running: RunDir) -> None:
    terminal = Terminal(home, "runs", "watch", "one")
    terminal.read(until=b"12/60")
    assert terminal.found & termios.ECHOCTL and not termios.tcgetattr(terminal.master)[3] & termios.ECHOCTL
    os.killpg(terminal.process.pid, signal.SIGINT)
    terminal.read(until=b"runs stop one")
    terminal.process.wait(timeout=60)
    assert termios.tcgetattr(terminal.master)[3] == terminal.found
    assert terminal.end()[0] == 130
