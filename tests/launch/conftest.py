import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stackllama_engine.contract.child_environment import source_path
from stackllama_engine.contract.recipe_io import build_recipe, dump_recipe
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher, nvml
from stackllama_engine.launch.argv import RUN_MARK, Command
from stackllama_engine.launch.processes import kill_run_processes, send
from stackllama_engine.launch.reconcile import reconcile

from .fake_nvml import FakeNvml

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")


def wait_for(what: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "timed out waiting"
        time.sleep(0.01)


def wait_for_phase(run: RunDir, *phases: str) -> State:
    wait_for(lambda: run.read_state().phase in phases or run.read_state().has_ended)
    state = run.read_state()
    assert state.phase in phases, state
    return state


def fake_command(run_dir: Path, mode: str) -> Command:
    environment = {RUN_MARK: str(run_dir), "STACKLLAMA_WORLD_SIZE": "1"} | source_path("")
    return Command(argv=[sys.executable, str(FAKE_WORKER), str(run_dir), mode], environment=environment)


class Clock:
    """A clock that a test advances by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """One GPU, for which a test sets what NVML returns."""
    fake = FakeNvml()
    monkeypatch.setattr(nvml, "pynvml", fake)
    return fake


class Runs:
    """Starts fake workers through the real launcher and supervisor."""

    def __init__(self, home: Home) -> None:
        self.home = home

    def create(self, name: str | None = None) -> RunDir:
        decided = {"base_precision": "dtype", "gradient_checkpointing": False}
        recipe = build_recipe(Stage.SFT, {"model_name_or_path": "gpt2", "use_cpu": True} | decided)
        return self.home.create(Stage.SFT, dump_recipe(recipe), name)

    def start(self, mode: str, name: str | None = None) -> RunDir:
        run = self.create(name)
        self.again(run, mode)
        return run

    def again(self, run: RunDir, mode: str, after: str | None = None) -> None:
        lock = run.acquire_lock()
        try:
            launcher.start_supervisor(run, lock, fake_command(run.path, mode), launcher.Record(after=after))
        finally:
            os.close(lock)

    def end(self, mode: str) -> tuple[RunDir, State]:
        run = self.start(mode)
        return run, wait_for_phase(run, "finished", "failed", "stopped", "lost")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "home")
    yield home
    for run in home.runs():
        if supervisor := run.read_state().supervisor:
            send(supervisor, signal.SIGKILL)
        kill_run_processes(run.path)


@pytest.fixture
def runs(home: Home, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setenv("STACKLLAMA_STOP_GRACE", "0.5")
    monkeypatch.setenv("STACKLLAMA_TERM_GRACE", "0.5")
    return Runs(home)


@pytest.fixture
def fake_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """``launch`` and ``resume`` start a fake worker that finishes."""
    monkeypatch.setattr(launcher, "build_command", lambda _recipe, run_dir, _gpus: fake_command(run_dir, "finish"))


__all__ = ["Runs", "fake_command", "reconcile", "wait_for", "wait_for_phase"]
