"""Signals at chosen moments of the real command; at random ones: tests/torture/test_signals.py."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.working import WORKER, end
from tests.launch.conftest import wait_for
from tests.tui.terminal import SOURCES, Terminal

from stackllama_engine.contract.run_dir import Home
from stackllama_engine.launch.reconcile import reconcile

pytestmark = pytest.mark.slow  # each starts the real command

IMPORTING = """
import importlib.abc, sys, time
sys.argv[0] = "/stackllama-console"

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            print("importing", flush=True)
            time.sleep(600)

sys.meta_path.insert(0, Slow())
from stackllama_console.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
LAUNCHING = """
import sys, time
sys.argv[0] = "/stackllama-console"
from stackllama_console.__main__ import main
from stackllama_engine.launch import launcher
from stackllama_engine.contract.child_environment import source_path
from stackllama_engine.launch.argv import RUN_MARK, Command

def scripted(recipe, run_dir, gpus):
    environment = {{RUN_MARK: str(run_dir), "STACKLLAMA_WORLD_SIZE": "1"}} | source_path("")
    return Command(argv=[sys.executable, {worker!r}, str(run_dir), "1000000", "0.02"], environment=environment)

def slow(*arguments, **named):
    print("created", flush=True)
    for _ in range(20):
        time.sleep(0.05)
    start(*arguments, **named)

start, launcher.start_supervisor, launcher.build_command = launcher.start_supervisor, slow, scripted
sys.exit(main(sys.argv[1:]))
"""
MOUNTING = """
import asyncio, os, sys
from stackllama_console.tui.screen import ConsoleScreen

async def on_mount(self):
    os.kill(os.getpid(), {number})
    await asyncio.sleep({seconds})
    raise RuntimeError("its widgets have gone")

ConsoleScreen.on_mount = on_mount
from stackllama_console.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def begin(tmp_path: Path, code: str, *words: str) -> subprocess.Popen[str]:
    """Start the command with a change in it, and wait until it prints a line."""
    (tmp_path / "changed.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": SOURCES, "STACKLLAMA_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "changed.py"), *words],
        env=environment,
        text=True,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline()
    return process


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "home")
    yield home
    for run in home.runs():
        end(run)


@pytest.mark.parametrize(
    ("number", "module"),
    [
        (signal.SIGINT, "msgspec"),
        (signal.SIGTERM, "stackllama_console.cli.parser"),
        (signal.SIGINT, "stackllama_console.cli.listing"),
        (signal.SIGHUP, "stackllama_console.cli.listing"),
    ],
)
def test_signal_during_an_import_exits_quietly(tmp_path: Path, number: signal.Signals, module: str) -> None:
    process = begin(tmp_path, IMPORTING.format(module=module), "runs", "ls")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (128 + number, "", "")


def test_ignored_hang_up_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        process = begin(tmp_path, IMPORTING.format(module="msgspec"), "runs", "ls")
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_signal_during_a_launch_waits_until_the_run_is_started(
    tmp_path: Path, started: Home, number: signal.Signals
) -> None:
    words = ("launch", "sft", "model_name_or_path=demo", "dataset_name=demo", "use_cpu=true", "--name=mine")
    process = begin(tmp_path, LAUNCHING.format(worker=str(WORKER)), *words)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, "")
    (run,) = started.runs()
    wait_for(lambda: reconcile(run).phase == "running", 60)
    assert run.lock_is_held()


@pytest.mark.parametrize(
    ("number", "seconds"),
    [pytest.param(signal.SIGINT, 0.3, marks=pytest.mark.long), (signal.SIGTERM, 0.3), (signal.SIGTERM, 600)],
    ids=["INT", "TERM", "hangs"],
)
def test_signal_during_the_first_screen_is_no_crash(tmp_path: Path, number: signal.Signals, seconds: float) -> None:
    (tmp_path / "changed.py").write_text(MOUNTING.format(number=int(number), seconds=seconds))
    command = (sys.executable, str(tmp_path / "changed.py"))
    with Terminal(tmp_path / "home", command=command) as console:
        assert console.end() == 128 + number
        console.assert_left_clean()
        assert "stackllama-console:" not in console.output and "Traceback" not in console.output
