"""Cases 1, 2 and 11 with the real console in a terminal: its end never affects a run."""

import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from tests.cli.working import WORKER, begin, create, end, size
from tests.launch.conftest import wait_for
from tests.tui.terminal import Terminal

from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.processes import run_processes
from stackllama_engine.launch.reconcile import reconcile

from .conftest import Counted

pytestmark = pytest.mark.slow

SCRIPTED = """
import sys
from stackllama_engine.launch import launcher
from stackllama_engine.contract.child_environment import source_path
from stackllama_engine.launch.argv import RUN_MARK, Command

def scripted(recipe, run_dir, gpus):
    environment = {{RUN_MARK: str(run_dir), "STACKLLAMA_WORLD_SIZE": "1"}} | source_path("")
    return Command(argv=[sys.executable, {worker!r}, str(run_dir), "1000000", "0.02"], environment=environment)

launcher.build_command = scripted
from stackllama_console.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
"""The console's command, with a scripted worker in every stage's place."""


@pytest.fixture
def stocked_home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "place" / "home")
    yield made
    for run in made.runs():
        end(run)


@pytest.fixture
def working(stocked_home: Home) -> RunDir:
    return begin(stocked_home)


@pytest.fixture
def scripted(tmp_path: Path) -> tuple[str, str]:
    script = tmp_path / "scripted.py"
    script.write_text(SCRIPTED.format(worker=str(WORKER)))
    return sys.executable, str(script)


def pump_for(console: Terminal, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        console.pump(left)


def kill(console: Terminal) -> None:
    console.signal(signal.SIGKILL)
    assert console.end() == -signal.SIGKILL
    console.close()


def settled(run: RunDir) -> str:
    """Return the phase once a killed launcher has no more effect."""

    def look() -> bool:
        state = reconcile(run)
        return state.has_ended or state.phase == "running"

    state = run.read_state()
    if state.phase == "queued" and not run.lock_is_held():  # as when ten seconds have passed
        run.write_state(msgspec.structs.replace(state, created=1.0))
    wait_for(look)
    return reconcile(run).phase


def assert_at_most_once(run: RunDir, attempts: int) -> None:
    """Assert that it runs exactly once, or not at all."""
    phase = settled(run)
    assert len(run.attempt_dirs()) <= attempts, "launched twice"
    wait_for(lambda: len(run_processes(run.path)) == (phase == "running"))
    assert run.lock_is_held() == (phase == "running")
    end(run)


def test_a_console_killed_while_it_looks_on(working: RunDir, stocked_home: Home, counted: Counted) -> None:
    state = working.read_state()

    def trial(_: int) -> None:
        before = size(working)
        with Terminal(stocked_home.path, "open", "working") as console:
            pump_for(console, counted.chance.uniform(0.0, 2.2))
            kill(console)
        wait_for(lambda: size(working) > before)
        assert working.read_state() == state and list(working.requests()) == []
        assert len(run_processes(working.path)) == 1

    counted.run(2, "console killed while it shows a running run", trial, few=1, all_of_them=100)


def test_a_console_killed_while_it_resumes(stocked_home: Home, scripted: tuple[str, str], counted: Counted) -> None:
    def trial(number: int) -> None:
        run = create(stocked_home, f"again-{number}")
        run.attempt_dir(1).mkdir()
        (run.attempt_dir(1) / "events.jsonl").touch()
        stopped = msgspec.structs.replace(run.read_state(), phase="stopped", attempt=1, ended=time.time(), exit_code=75)
        run.write_state(stopped)
        with Terminal(stocked_home.path, "open", run.id, command=scripted) as console:
            console.wait_for("stopped", "try ")
            console.send("r")
            pump_for(console, counted.chance.uniform(0.0, 1.0))
            kill(console)
        assert_at_most_once(run, 2)

    counted.run(2, "console killed while it resumes a run", trial, few=1, all_of_them=50)


def test_a_console_killed_while_it_launches(tmp_path: Path, scripted: tuple[str, str], counted: Counted) -> None:
    def trial(number: int) -> None:
        home = Home(tmp_path / f"launched-{number}" / "home")
        with Terminal(home.path, "demo", command=scripted) as console:
            pump_for(console, counted.chance.uniform(0.3, 2.0))
            kill(console)
        assert len(home.runs()) <= 1
        for run in home.runs():
            assert_at_most_once(run, 1)

    counted.run(2, "console killed while it launches a run", trial, few=1, all_of_them=50)


@pytest.mark.torture
def test_a_terminal_closed_in_mid_run(working: RunDir, stocked_home: Home, counted: Counted) -> None:
    state = working.read_state()

    def trial(_: int) -> None:
        with Terminal(stocked_home.path, "open", "working") as console:
            pump_for(console, counted.chance.uniform(0.2, 2.0))
            console.hang_up()
            wait_for(lambda: console.process.poll() is not None)
        before = size(working)
        wait_for(lambda: size(working) > before)
        assert working.read_state() == state
        done = (working.attempt_dir(1) / "events.jsonl").read_bytes().count(b'"progress"')
        with Terminal(stocked_home.path, "open", "working", size=(160, 45)) as again:
            again.wait_for("● running", "loss")
            again.until(lambda: shown_step(again) >= done)
            again.send("q")
            assert again.end() == 0

    counted.run(1, "terminal closed; another console shows the same run", trial, few=0, all_of_them=10)


def shown_step(console: Terminal) -> int:
    found = re.search(r"step ([0-9,]+)/", console.text())
    return int(found[1].replace(",", "")) if found else 0


DAMAGE: dict[str, Callable[[Path, random.Random], int]] = {}
"""Kinds of damage to a log; each returns the number of bad lines it makes."""


def damage(function: Callable[[Path, random.Random], int]) -> Callable[[Path, random.Random], int]:
    DAMAGE[function.__name__] = function
    return function


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


@damage
def nuls(path: Path, chance: random.Random) -> int:
    append(path, b"\0" * chance.randrange(1, 5000) + b"\n")
    return 1


@damage
def invalid_utf8(path: Path, chance: random.Random) -> int:
    append(path, b'{"seq":1,"time":1.0,"kind":"\xff\xfe' + chance.randbytes(20).replace(b"\n", b"") + b'"}\n')
    return 1


@damage
def long_line(path: Path, chance: random.Random) -> int:
    append(path, b'{"seq":1,"time":1.0,"kind":"' + b"y" * 5_000_000 + b'"}\n')
    return 1


@damage
def truncated_line(path: Path, chance: random.Random) -> int:
    append(path, b'{"seq":1,"time":1.0,"ki'[: chance.randrange(1, 23)] + b"\n")
    return 1


@damage
def unfinished_line(path: Path, chance: random.Random) -> int:
    append(path, b'{"seq":1,"time":1.0,"ki')
    return 0


def test_a_damaged_log_is_shown_with_the_count_of_what_is_bad(tmp_path: Path, counted: Counted) -> None:
    from tests.tui.screens_kit import make_run, write_metrics

    def trial(number: int) -> None:
        home = Home(tmp_path / f"damaged-{number}" / "home")
        run = make_run(home, Stage.SFT, "damaged", phase="failed")
        write_metrics(run, {"loss": [4.0, 3.0, 2.0]})
        path = run.attempt_dir(1) / "events.jsonl"
        bad = 0
        for name in counted.chance.sample(sorted(set(DAMAGE) - {"unfinished_line"}), 3):
            bad += DAMAGE[name](path, counted.chance)
        with Terminal(home.path, "open", "damaged", size=(160, 45)) as console:
            console.wait_for("loss", f"{bad} lines of its events could not be read")
            whole = path.read_bytes()
            if counted.chance.random() < 0.5:  # truncated while it is shown, or replaced by another
                os.truncate(path, len(whole) // 2)
                path.write_bytes(whole + b"\0\n")
            else:
                path.with_name("other").write_bytes(whole + b"\0\n")
                path.with_name("other").replace(path)
            console.wait_for("loss", f"{bad + 1} lines of its events could not be read")
            unfinished_line(path, counted.chance)
            console.settle(0.3)
            console.send("q")
            assert console.end() == 0

    counted.run(11, "log damaged, truncated, replaced under the console", trial, few=1, all_of_them=20)
