"""A log in the person's own pager: the terminal is lent, drawn again afterwards, and signals end both."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.tui.terminal import Terminal

pytestmark = pytest.mark.slow  # each starts the real command in a terminal: a second or more

Open = Callable[..., Terminal]

PAGER = """
import sys
print("\\x1b[2J\\x1b[HPAGER OF", open(sys.argv[1]).read().count("rollout"), flush=True)
try:
    sys.stdin.readline()
except KeyboardInterrupt:
    print("INTERRUPTED", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def paged(terminal: Open, tmp_path: Path) -> Terminal:
    program = tmp_path / "pager.py"
    program.write_text(PAGER)
    console = terminal("open", "aligned", environment={"PAGER": f"{sys.executable} {program}"})
    console.wait_for("INFO rollout 40")
    console.send("5")
    console.settle()
    return console


def test_log_is_opened_in_the_pager_and_the_screen_comes_back(paged: Terminal) -> None:
    before = paged.text()
    paged.send("O")
    paged.wait_for("PAGER OF 40")
    assert "INFO rollout 39" not in paged.text()
    paged.send("\x03")
    paged.wait_for("INTERRUPTED")
    assert paged.process.poll() is None, "Ctrl-C was the pager's"
    paged.send("\r")
    paged.wait_for("INFO rollout 40")
    paged.settle()
    assert paged.text() == before
    paged.send("q")
    assert paged.end() == 0
    paged.assert_left_clean()


def test_signal_ends_the_pager_and_then_the_console(paged: Terminal) -> None:
    paged.send("O")
    paged.wait_for("PAGER OF 40")
    paged.signal(signal.SIGTERM)
    assert paged.end() == 128 + signal.SIGTERM
    paged.assert_left_clean()
