"""Runs and consoles: whatever becomes of a console or its terminal, no run notices."""

import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cli.conftest import FORBIDDEN, PAYLOADS
from tests.cli.working import begin, end, size
from tests.launch.conftest import wait_for
from tests.tui.conftest import snapshot
from tests.tui.hostile import hostile_directory, hostile_run
from tests.tui.terminal import Terminal

from stackllama_console.tui.driver import guarded
from stackllama_engine.contract.run_dir import Home, RunDir

pytestmark = pytest.mark.slow  # each starts the real command in a terminal: a second or more

Open = Callable[..., Terminal]


@pytest.fixture
def working(stocked: Home) -> Iterator[RunDir]:
    run = begin(stocked)
    yield run
    end(run)


def _steps(run: RunDir) -> int:
    """Return the steps the worker has done."""
    return (run.attempt_dir(1) / "events.jsonl").read_bytes().count(b'"progress"')


def _shown_step(console: Terminal) -> int:
    found = re.search(r"step ([0-9,]+)/", console.text())
    return int(found[1].replace(",", "")) if found else 0


def _still_writes(run: RunDir) -> bool:
    """Return whether the worker still writes."""
    before = size(run)
    wait_for(lambda: size(run) > before)
    return not run.read_state().has_ended


def test_a_stalled_terminal_stalls_no_run_and_the_console_catches_up(terminal: Open, working: RunDir) -> None:
    console = terminal("open", "working", size=(160, 45))
    console.wait_for("● running", "loss")
    console.send("T" * 60)
    before = size(working)
    wait_for(lambda: size(working) > before + 10_000)
    assert _still_writes(working)
    step = _steps(working)
    console.until(lambda: _shown_step(console) >= step)
    console.send("q")
    assert console.end() == 0
    console.assert_left_clean()
    assert _still_writes(working)


def test_a_killed_console_touches_no_run(terminal: Open, working: RunDir) -> None:
    state = working.read_state()
    for texts in ((), ("working",), ("● running",), ("● running", "loss")):
        console = terminal("open", "working")
        if texts:
            console.wait_for(*texts)
        console.signal(signal.SIGKILL)
        assert console.end() == -signal.SIGKILL
        assert _still_writes(working)
    assert working.read_state() == state
    assert list(working.requests()) == []


def test_a_hang_up_touches_no_run_and_another_console_shows_its_whole_history(terminal: Open, working: RunDir) -> None:
    console = terminal("open", "working")
    console.wait_for("● running", "loss")
    console.hang_up()
    wait_for(lambda: console.process.poll() is not None)
    assert _still_writes(working)
    again = terminal("open", "working", size=(160, 45))
    again.wait_for("● running", "loss")
    again.send("d")
    again.wait_for("train: first 4,", "steps 1 to", "esc closes")
    again.send("\x1b")
    again.wait_gone("esc closes")
    again.send("q")
    assert again.end() == 0


def test_two_consoles_change_nothing(terminal: Open, stocked: Home) -> None:
    before = snapshot(stocked.path)
    consoles = [terminal(), terminal()]
    for console in consoles:
        console.wait_for("aligned", "alive")
    for keys, text in (
        ("\r", "rollout 40"),
        ("d", "KL"),
        ("\x1b", "rollout 40"),
        ("a", "because"),
        ("\x1b\x1b", "tuned"),
    ):
        for console in consoles:
            console.send(keys)
        for console in consoles:
            console.wait_for(text)
            console.settle(0.3)
    for console in consoles:
        console.send("q")
        assert console.end() == 0
    assert snapshot(stocked.path) == before


def test_anything_but_y_leaves_a_run_alone(terminal: Open, stocked: Home) -> None:
    before = snapshot(stocked.path)
    for run_id, key, question in (("alive", "x", "Stop alive?"), ("aligned", "D", "Delete aligned")):
        console = terminal("open", run_id)
        console.wait_for(run_id, "loss" if run_id == "alive" else "rollout 40")
        for no in "nq\x1b":
            console.send(key)
            console.wait_for(question)
            console.send(no)
            console.wait_gone(question)
        console.send("q")
        assert console.end() == 0
    assert snapshot(stocked.path) == before


DEMO = """
import sys
from stackllama_engine.launch import launcher

def launch(planned):
    from stackllama_engine.contract.run_dir import State
    run = planned.home.create(planned.stage, planned.recipe_yaml, "the-demo")
    run.attempt_dir(1).mkdir(mode=0o700)
    lock = run.acquire_lock()
    globals()["lock"] = lock
    run.write_state(State(stage=planned.stage, phase="running", attempt=1, created=1.7e9, started=1.7e9))
    return run

launcher.launch = launch
from stackllama_console.__main__ import main
sys.exit(main(["demo"]))
"""


def test_demo_opens_the_console_on_its_pipeline(terminal: Open, tmp_path: Path) -> None:
    script = tmp_path / "demo.py"
    script.write_text(DEMO)
    console = terminal(command=(sys.executable, str(script)))
    console.wait_for("the-demo", "· sft → ", "ppo merge")
    console.send("q")
    assert console.end() == 0
    console.assert_left_clean()
    after = console.output[console.output.rfind("\x1b[?1049l") :]
    assert "the-demo continues in the background" in after and "open the-demo" in after


# what foreign text can do to a terminal

TOUR = (
    ("\r", "not red"),
    ("5", "nested"),
    ("5", "reward"),
    ("6", "first"),
    ("6", "nested"),
    ("d", "esc closes"),
    ("\x1b", "nested"),
    ("a", "response"),
    ("j", "not red"),
    ("\x1b", "nested"),
    ("\x1b", "cause"),
    ("D", "n  cancel"),
    ("n", "cause"),
    ("?", "runs.open"),
    ("\x1b", "cause"),
    ("e", "has no key"),
    ("\x1b", "cause"),
)
"""Keys, and what then stands there."""


def test_no_payload_reaches_the_terminal(terminal: Open, stocked: Home) -> None:
    hostile_run(stocked)
    console = terminal(size=(160, 45))
    console.wait_for("hostile", "aligned")
    console.send("/hostile\r")
    console.wait_for("filter: hostile")
    for key, text in TOUR:
        console.send(key)
        console.settle(0.4)
        console.wait_for(text)
    console.send("q")
    assert console.end() == 0
    _assert_harmless(console)
    assert "stolen clipboard" in console.output and "[@click=app.quit]markup[/]" in console.output  # it was shown


def test_no_payload_of_another_trainer_reaches_the_terminal(terminal: Open, tmp_path: Path) -> None:
    console = terminal("open", str(hostile_directory(tmp_path / "outputs")), size=(160, 45))
    console.wait_for("nested", "not red")
    for key in "55662]dj":
        console.send(key)
        console.settle(0.3)
    console.send("\x1b")
    console.settle(0.3)
    console.send("q")
    assert console.end() == 0
    _assert_harmless(console)


def _assert_harmless(console: Terminal) -> None:
    console.assert_left_clean()
    start, stop = console.output.find("\x1b[?1049h"), console.output.rfind("\x1b[?1049l")
    sent = console.output[start:stop].replace("\r\n", "\n")  # the carriage return is the terminal's own
    assert guarded(sent) == sent
    assert not any(payload in sent for payload in PAYLOADS if FORBIDDEN & set(payload))


def test_an_open_console_announces_the_end_of_a_run_on_any_screen(terminal: Open, stocked: Home) -> None:
    run = begin(stocked)
    console = terminal("open", "aligned")
    console.wait_for("rollout 40")
    console.count_bytes(3)  # the runs that are there have been seen
    end(run)
    console.until(lambda: f"\x07\x1b]9;run {run.id} " in console.output)
    console.send("q")
    assert console.end() == 0
