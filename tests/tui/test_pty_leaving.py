"""Leaving a real terminal by key, signal, hang-up, stalled or crashed: it is as it was before."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.tui.terminal import ALTERNATE, COMMAND, FOCUS, MOUSE, PASTE, SOURCES, Terminal

from stackllama_engine.contract.run_dir import Home

pytestmark = pytest.mark.slow  # each starts the real command in a terminal: a second or more

Open = Callable[..., Terminal]


@pytest.mark.parametrize("options", [(), ("--mouse",)], ids=["keys", "mouse"])
def test_q_leaves_with_0_and_the_terminal_as_it_was(terminal: Open, options: tuple[str, ...]) -> None:
    console = terminal(*options)
    console.wait_for("tuned", "broken")
    modes = console.modes()
    assert modes[ALTERNATE] and modes[PASTE] and modes[FOCUS] and console.settings != console.before
    assert any(modes.get(mode) for mode in MOUSE) == bool(options)
    console.send("q")
    assert console.end() == 0
    console.assert_left_clean()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_with_128_and_their_number(terminal: Open, number: signal.Signals) -> None:
    console = terminal("open", "aligned", "--mouse")
    console.wait_for("rollout 40")
    console.signal(number)
    assert console.end(10) == 128 + number
    console.assert_left_clean()


MOMENTS = {
    "entering": "LinuxDriver.start_application_mode",
    "mounting": "ConsoleApp._load_keymap",
    "composing": "RunsScreen.body",
    "heading": "ConsoleScreen.set_heading",
    "leaving": "LinuxDriver.stop_application_mode",
    "saving": "BaseApp.on_unmount",
    "closing": "LinuxDriver.close",
}
"""Where a signal strikes, from the first byte on and after `q`."""
STRUCK = """
import os, signal, sys
from textual.drivers.linux_driver import LinuxDriver
from stackllama_console.tui.app import BaseApp, ConsoleApp
from stackllama_console.tui.screens.runs import RunsScreen
from stackllama_console.tui.screen import ConsoleScreen

before = {moment}

def struck(self):
    os.kill(os.getpid(), signal.SIGTERM)
    return before(self)

{moment} = struck
from stackllama_console.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("moment", list(MOMENTS))
def test_a_signal_while_it_starts_or_ends_leaves_nothing_behind(terminal: Open, tmp_path: Path, moment: str) -> None:
    script = tmp_path / "struck.py"
    script.write_text(STRUCK.format(moment=MOMENTS[moment]))
    console = terminal(command=(sys.executable, str(script)))
    if moment in ("leaving", "saving", "closing"):
        console.wait_for("tuned")
        console.send("q")
    assert console.end(20) == 128 + signal.SIGTERM, console.output
    _assert_nothing_is_left(console, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_signals_at_random_times_of_start_and_end_leave_nothing_behind(terminal: Open, tmp_path: Path) -> None:
    """40 of them, with `STACKLLAMA_TORTURE=full` 200."""
    chance = random.Random(0)
    for trial in range(200 if os.environ.get("STACKLLAMA_TORTURE") == "full" else 40):
        number = chance.choice((signal.SIGTERM, signal.SIGHUP, signal.SIGINT))
        console = terminal()
        if trial % 2:
            console.wait_for("tuned")
            console.send("q")
        else:
            console.until(lambda shown=console: b"\x1b[?1049h" in shown.data)
        deadline = time.monotonic() + chance.uniform(0, 0.1 if trial % 2 else 0.6)
        while (left := deadline - time.monotonic()) > 0:
            console.pump(left)
        console.signal(number)
        code = console.end(20)
        code = 128 - code if code < 0 else code  # as a shell has it: Python lets go of its handlers at its very end
        assert code == 128 + number or (trial % 2 and code == 0), (trial, code, console.output)
        _assert_nothing_is_left(console, tmp_path)
        console.close()


OUTLIVING = """
import pathlib, signal, subprocess, sys
signal.signal(signal.SIGHUP, lambda *_: None)
pathlib.Path(sys.argv[1]).write_text(str(subprocess.call(sys.argv[2:])))
"""
"""Runs a command in its own place, outlives the terminal, and writes down the exit code."""


@pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux here")
def test_a_killed_tmux_session_ends_it_without_a_crash_file(stocked: Home, tmp_path: Path) -> None:
    socket, code, script = tmp_path / "tmux", tmp_path / "code", tmp_path / "kept.py"
    script.write_text(OUTLIVING)
    tmux = ["tmux", "-f", os.devnull, "-S", str(socket)]
    environment = os.environ | {"PYTHONPATH": SOURCES, "LANG": "C.UTF-8"}
    pane = [sys.executable, str(script), str(code), *COMMAND]
    subprocess.run([*tmux, "new-session", "-d", "-x", "80", "-y", "24", *pane], env=environment, check=True)
    try:
        deadline = time.monotonic() + 60
        while "tuned" not in subprocess.check_output([*tmux, "capture-pane", "-p"], text=True):
            assert time.monotonic() < deadline, "it never drew anything"
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)
    while not code.is_file() or not code.read_text():
        assert time.monotonic() < deadline, "it outlived its terminal"
        time.sleep(0.02)
    assert int(code.read_text()) == 128 + signal.SIGHUP
    assert not list(tmp_path.rglob("crash-*"))


def _assert_nothing_is_left(console: Terminal, folder: Path) -> None:
    if b"\x1b[?1049h" in console.data:
        console.assert_left_clean()
    assert console.settings == console.before
    assert "Traceback" not in console.output and "stopped" not in console.output
    assert not list(folder.rglob("crash-*"))


def test_ctrl_c_says_the_way_out_and_ends_nothing(terminal: Open) -> None:
    console = terminal()
    console.wait_for("tuned")
    console.send("\x03")
    console.wait_for("Press q to quit")
    console.send("q")
    assert console.end() == 0


@pytest.mark.parametrize("controlling", [True, False], ids=["login", "nohup"])
def test_a_closed_terminal_ends_it_at_once(terminal: Open, controlling: bool) -> None:
    console = terminal("open", "aligned", controlling=controlling)
    console.wait_for("rollout 40")
    console.hang_up()
    deadline = time.monotonic() + 10
    while console.process.poll() is None:
        assert time.monotonic() < deadline, "it outlived its terminal"
        time.sleep(0.02)
    assert console.process.returncode == 128 + signal.SIGHUP


def test_sigterm_ends_it_while_the_terminal_takes_no_bytes(terminal: Open) -> None:
    console = terminal(size=(160, 45))
    console.wait_for("tuned")
    console.send("T" * 60)  # whole repaints, far more than the terminal's buffer and Textual's queue hold
    _wait_until_stalled(console)
    console.signal(signal.SIGTERM)
    deadline = time.monotonic() + 15
    while console.process.poll() is None:
        assert time.monotonic() < deadline, "it hangs in a stalled terminal"
        time.sleep(0.02)
    assert console.process.returncode == 128 + signal.SIGTERM
    assert console.settings == console.before


def test_console_continues_when_a_stalled_terminal_takes_bytes_again(terminal: Open) -> None:
    console = terminal(size=(160, 45))
    console.wait_for("tuned")
    console.send("T" * 60)
    _wait_until_stalled(console)
    assert console.pump() > 4000
    console.settle()
    console.send("?")
    console.wait_for("app.quit")
    console.send("\x1b")
    console.wait_gone("app.quit")
    console.send("q")
    assert console.end() == 0
    console.assert_left_clean()


def _wait_until_stalled(console: Terminal) -> None:
    """Wait until the process is stalled: it takes (all but) no processor time."""
    deadline, last = time.monotonic() + 60, -1.0
    while (used := console.cpu_seconds()) - last > 0.03:
        assert time.monotonic() < deadline, "it never stalled"
        last = used
        time.sleep(0.5)


CRASHES = {
    "polling": "RunsScreen.poll = broken",
    "rendering": "RunsScreen.render_update = broken",
    "key": "RunsScreen.action_compare = broken",
    "painting": "from stackllama_console.tui.widgets.text_lines import TextLines\nTextLines.render_line = broken",
    "worker": "RunsScreen.action_compare = lambda self: self.run_worker(later(), exit_on_error=True)",
    "composing": "RunsScreen.body = broken",
}
CRASHING = """
import sys
from stackllama_console.tui.screens.runs import RunsScreen

def broken(*_):
    local = "hunter2" * 3
    raise ValueError("nobody expected [bold]this[/] \\x1b]52;c;aGk=\\x07 of token-0123456789")

async def later():
    broken()

{patch}
from stackllama_console.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("where", list(CRASHES))
def test_a_crash_is_one_line_and_a_trace_without_locals(terminal: Open, tmp_path: Path, where: str) -> None:
    script = tmp_path / "crashing.py"
    script.write_text(CRASHING.format(patch=CRASHES[where]))
    console = terminal(command=(sys.executable, str(script)), environment={"HF_TOKEN": "token-0123456789"})
    if where in ("key", "worker"):
        console.wait_for("tuned")
        console.send("c")
    assert console.end(20) == 1
    console.assert_left_clean()
    said = console.output[console.output.rfind("\x1b[?1049l") :].partition("stackllama-console:")[2].strip()
    assert said.startswith("the console stopped: ValueError: nobody expected [bold]this[/]") and "\n" not in said
    assert "Runs are not affected." in said and "\x1b]" not in console.output
    (trace,) = (tmp_path / "state" / "stackllama").glob("crash-*.txt")
    assert trace.name in said
    text = trace.read_text()
    assert "in broken" in text and "ValueError: nobody expected" in text
    assert trace.stat().st_mode & 0o777 == 0o600
    for secret in ("hunter2hunter2", "token-0123456789"):
        assert secret not in text and secret not in console.output


@pytest.mark.parametrize(
    "target",
    ["nonexistent", *(each for each in ("./nonexistent", "../escape", "\x1b]52;c;aGk=\x07"))],
)
def test_open_of_a_missing_target_is_one_line(terminal: Open, target: str) -> None:
    console = terminal("open", target)
    assert console.end() == 2
    assert ALTERNATE not in console.modes() and "\x1b" not in console.output
    assert len(console.output.strip().splitlines()) == 1


def test_open_of_a_directory_without_anything_to_watch_says_what_it_looked_for(terminal: Open, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    console = terminal("open", str(tmp_path / "empty"), size=(400, 24))
    assert console.end() == 2
    assert "trainer_state.json" in console.output and ALTERNATE not in console.modes()


def test_a_terminal_that_cannot_draw_is_one_line(terminal: Open) -> None:
    for term, said in (("dumb", "TERM=dumb"), (None, "TERM is not set")):
        console = terminal(environment={"TERM": term}, size=(400, 24))
        assert console.end() == 2
        assert "needs a terminal" in console.output and said in console.output and "\x1b" not in console.output
        assert len(console.output.strip().splitlines()) == 1


def test_without_a_terminal_it_says_what_to_do_instead(stocked: Home) -> None:
    done = subprocess.run(
        COMMAND, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": SOURCES}
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "runs ls" in done.stderr and len(done.stderr.splitlines()) == 1
