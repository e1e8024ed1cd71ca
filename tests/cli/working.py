"""A run under a real supervisor that outlasts any test: for commands that may not disturb it."""

import os
import signal
import sys
from pathlib import Path

from tests.launch.conftest import wait_for

from stackllama_engine.contract.child_environment import source_path
from stackllama_engine.contract.recipe_io import build_recipe, dump_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher
from stackllama_engine.launch.argv import RUN_MARK, Command
from stackllama_engine.launch.processes import kill_run_processes, send

WORKER = Path(__file__).with_name("scripted_worker.py")


def create(home: Home, name: str) -> RunDir:
    """Create a run without starting it."""
    recipe = build_recipe(Stage.SFT, {"model_name_or_path": "gpt2", "use_cpu": True})
    return home.create(Stage.SFT, dump_recipe(recipe), name)


def work(run: Path) -> Command:
    """Return a command for a million steps at fifty per second."""
    environment = {RUN_MARK: str(run), "STACKLLAMA_WORLD_SIZE": "1"} | source_path("")
    return Command(argv=[sys.executable, str(WORKER), str(run), "1000000", "0.02"], environment=environment)


def begin(home: Home, name: str = "working") -> RunDir:
    """Start a new run."""
    run = create(home, name)
    lock = run.acquire_lock()
    try:
        launcher.start_supervisor(run, lock, work(run.path), launcher.Record())
    finally:
        os.close(lock)
    wait_for(lambda: run.read_state().phase == "running" and size(run) > 0)
    return run


def end(run: RunDir) -> None:
    """Its supervisor and everything below."""
    if supervisor := run.read_state().supervisor:
        send(supervisor, signal.SIGKILL)
    kill_run_processes(run.path)


def size(run: RunDir) -> int:
    """Bytes of events so far."""
    path = run.attempt_dir(1) / "events.jsonl"
    return path.stat().st_size if path.is_file() else 0
