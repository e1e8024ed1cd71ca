"""Case 3 by another path of the same home: whatever reconciles and resumes, there are never two trainers."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.launch.conftest import FAKE_WORKER, fake_command, wait_for

from stackllama_engine.contract.errors import RefusedError
from stackllama_engine.contract.run_dir import Home, ProcessId, RunDir
from stackllama_engine.launch import launcher
from stackllama_engine.launch.processes import identify, kill_run_processes, send
from stackllama_engine.launch.reconcile import reconcile

from .conftest import Counted, Runs
from .test_supervisor_kills import kill_supervisor

pytestmark = pytest.mark.slow


def trainers(name: str) -> list[ProcessId]:
    """List them by their command line, not by the mark that is under test."""
    processes: list[ProcessId] = []
    for entry in Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if len(arguments) > 2 and arguments[1] == bytes(FAKE_WORKER) and Path(arguments[2].decode()).name == name:
            process = identify(int(entry.name))
            processes += [process] if process is not None else []
    return processes


def test_one_home_by_two_paths_has_one_trainer(
    runs: Runs, counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(runs.home.path)
    homes = [runs.home, Home(tmp_path / "link"), Home(tmp_path / "link" / ".." / runs.home.path.name)]
    unresolved = tmp_path / "link" / "runs"
    monkeypatch.setattr(
        launcher, "build_command", lambda _recipe, run_dir, _gpus: fake_command(run_dir, "until-stopped")
    )

    def resume(home: Home, name: str) -> None:
        try:
            launcher.resume(home, name)
        except RefusedError as error:
            assert "alive" in str(error)

    def trial(number: int) -> None:
        name = f"two-paths-{number}"
        # Launched by either path, as an earlier version would have written it into the mark.
        first = counted.chance.choice([runs.home.runs_dir, unresolved])
        run = runs.create(name)
        launched = RunDir(first / name)
        runs.again(launched, "until-stopped")
        time.sleep(counted.chance.uniform(0.0, 0.6))
        kill_supervisor(launched)
        looks: list[Callable[[], object]] = [
            lambda: reconcile(RunDir(unresolved / name)),
            lambda: reconcile(counted.chance.choice(homes).run(name)),
            lambda: resume(counted.chance.choice(homes), name),
        ]
        for look in counted.chance.sample(looks, 3):
            look()
            assert len(trainers(name)) <= 1, "two trainers in one directory"
        wait_for(lambda: len(trainers(name)) == 1)
        resume(counted.chance.choice(homes), name)
        assert len(trainers(name)) == 1 and len(run.attempt_dirs()) == 2
        kill_supervisor(run)
        kill_run_processes(run.path)
        assert trainers(name) == []

    try:
        counted.run(3, "supervisor killed, run seen and resumed by another path", trial, few=2, all_of_them=50)
    finally:
        for path in runs.home.runs_dir.glob("two-paths-*"):
            for process in trainers(path.name):
                send(process, signal.SIGKILL)
