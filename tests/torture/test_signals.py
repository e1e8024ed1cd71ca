"""Signals in the first second of a command: no traceback, the terminal as it was, and a launch is whole or none.

The moments begin when the command's first line has run: what Python itself prints of an interrupt while it starts
(some hundredths of a second) is not tested.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.working import WORKER, create, end
from tests.launch.conftest import wait_for
from tests.tui.terminal import ALTERNATE, CURSOR, Terminal

from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.launch.processes import ProcessId, catches, identify, run_processes
from stackllama_engine.launch.reconcile import reconcile

from .conftest import Counted
from .test_console_kills import pump_for

pytestmark = pytest.mark.slow

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
COMMANDS = {
    "console": ((), 1.2),
    "list": (("runs", "ls"), 0.3),
    "plan": (("plan", "sft", "model_name_or_path=demo", "dataset_name=demo"), 0.5),
    "launch": (("launch", "sft", "model_name_or_path=demo", "dataset_name=demo", "use_cpu=true", "--name=mine"), 1.6),
}
"""Arguments, and seconds within which most of the command runs."""
SCRIPTED = """
import sys
sys.argv[0] = "/stackllama-console"
from stackllama_console import __main__ as entry
from stackllama_engine.launch import launcher
from stackllama_engine.contract.child_environment import source_path
from stackllama_engine.launch.argv import RUN_MARK, Command

def scripted(recipe, run_dir, gpus):
    environment = {{RUN_MARK: str(run_dir), "STACKLLAMA_WORLD_SIZE": "1"}} | source_path("")
    return Command(argv=[sys.executable, {worker!r}, str(run_dir), "1000000", "0.02"], environment=environment)

launcher.build_command = scripted
sys.exit(entry.main(sys.argv[1:]))
"""
"""The command as its script starts it, with a scripted worker in every stage's place."""


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Restore SIGINT: a shell ignores it for background jobs, and so would every command started here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def wait_until_ours(terminal: Terminal) -> None:
    """Wait until it has set its handlers, or has ended."""
    process: ProcessId | None = None

    def ours() -> bool:
        nonlocal process
        process = process or identify(terminal.process.pid)
        return terminal.process.poll() is not None or (process is not None and catches(process, signal.SIGTERM))

    wait_for(ours, 60)


def assert_left_alone(terminal: Terminal, number: signal.Signals, code: int, *, whole: bool) -> None:
    """Assert that it ended by the signal, or just before, without a traceback, and restored the terminal."""
    code = 128 - code if code < 0 else code  # as a shell has it: Python lets go of its handlers at its very end
    assert code == 128 + number or (whole and code == 0), (code, terminal.output)
    assert "Traceback" not in terminal.output and "Exception ignored" not in terminal.output, terminal.output
    modes = terminal.modes()
    assert not modes.get(ALTERNATE, False) and modes.get(CURSOR, True), modes
    assert terminal.settings == terminal.before


def assert_whole_or_none(home: Home) -> None:
    """Assert that the run was created and is running, or that nothing has its name."""
    if not home.runs_dir.is_dir() or not list(home.runs_dir.iterdir()):
        return
    (run,) = home.runs()
    wait_for(lambda: reconcile(run).phase == "running", 60)
    assert [path.name for path in home.runs_dir.iterdir()] == ["mine"] and run.lock_is_held()
    assert len(run_processes(run.path)) == 1


def test_a_signal_in_the_first_second_leaves_nothing_behind(tmp_path: Path, counted: Counted) -> None:
    script = tmp_path / "scripted.py"
    script.write_text(SCRIPTED.format(worker=str(WORKER)))
    started: list[RunDir] = []
    homes: list[Home] = []

    def trial(trial_number: int) -> None:
        what = sorted(COMMANDS)[trial_number % len(COMMANDS)]
        words, seconds = COMMANDS[what]
        home = Home(tmp_path / f"trial-{trial_number}" / "home")
        if what in ("console", "list"):
            create(home, "other")
        number = counted.chance.choice(SIGNALS)
        homes.append(home)
        with Terminal(home.path, *words, command=(sys.executable, str(script))) as terminal:
            wait_until_ours(terminal)
            pump_for(terminal, counted.chance.uniform(0.0, seconds))
            if terminal.process.poll() is None:
                os.killpg(terminal.process.pid, number)  # as a terminal does: to the foreground process group
            code = terminal.end(30)
            assert_left_alone(terminal, number, code, whole=what != "console")
        if what == "launch":
            started.extend(home.runs())
            assert_whole_or_none(home)
            for run in home.runs():
                end(run)

    begun = time.monotonic()
    try:
        counted.run(19, "signal in the first second of a command", trial, few=2, all_of_them=200)
    finally:
        for run in (run for home in homes for run in home.runs()):
            end(run)  # of a trial that failed
    print(f"{len(started)} launches were whole, {time.monotonic() - begun:.0f} s")
