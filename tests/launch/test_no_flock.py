"""A home on a file system without flock: every command works, and there is never a second trainer."""

import errno
import fcntl
import os
import signal
from pathlib import Path

import pytest

from stackllama_console.__main__ import main
from stackllama_engine.contract.errors import RefusedError
from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.run_dir import HEALTH_FILE, RunDir
from stackllama_engine.launch import launcher
from stackllama_engine.launch.processes import run_processes, send
from stackllama_engine.launch.reconcile import reconcile
from stackllama_engine.launch.run_requests import stop

from .conftest import Runs, fake_command, wait_for, wait_for_phase

NO_FLOCK = """\
import errno, fcntl, os

def refuse(descriptor, operation):
    raise OSError(errno.{name}, os.strerror(errno.{name}))

fcntl.flock = refuse
"""


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.long) for name in ("ENOSYS", "EOPNOTSUPP")] + ["ENOLCK"])
def no_flock(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in this process nor in any that is started from it."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(NO_FLOCK.format(name=request.param))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    number = getattr(errno, request.param)

    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


def health(run: RunDir) -> str:
    return " ".join(str(event.data["message"]) for event in EventReader(run.attempt_dir(1) / HEALTH_FILE).read())


@pytest.mark.parametrize("no_flock", ["ENOLCK"], indirect=True)
@pytest.mark.usefixtures("no_flock")
def test_without_flock_a_run_goes_from_launch_to_rm(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ["--home", str(runs.home.path)]
    mode = "until-stopped"
    monkeypatch.setattr(launcher, "build_command", lambda _recipe, run_dir, _gpus: fake_command(run_dir, mode))
    launch = ["launch", "sft", "model_name_or_path=demo", "dataset_name=demo", "use_cpu=true", "--name", "mine", *home]
    assert main(launch) == 0
    assert "no flock" in capsys.readouterr().err
    run = runs.home.run("mine")
    wait_for_phase(run, "running")
    assert main(["runs", "ls", *home]) == 0 and "running" in capsys.readouterr().out
    assert main(["runs", "resume", "mine", *home]) == 3 and main(["runs", "rm", "mine", "--yes", *home]) == 3
    assert len(run_processes(run.path)) == 1 and "no flock" in health(run)
    assert main(["runs", "stop", "mine", *home]) == 0
    mode = "finish"
    wait_for(lambda: not run.lock_is_held())
    assert main(["runs", "resume", "mine", *home]) == 0
    assert wait_for_phase(run, "finished").attempt == 2
    wait_for(lambda: not run.lock_is_held())
    assert list((run.path / "lock.d").iterdir()) == [], "other machines would take it for alive"
    assert main(["runs", "rm", "mine", "--yes", *home]) == 0 and runs.home.runs() == []


@pytest.mark.usefixtures("no_flock")
def test_without_flock_a_killed_supervisor_is_a_lost_run(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.start("until-stopped", "mine")
    wait_for(lambda: (run.path / "worker.pid").exists())
    wait_for_phase(run, "running")
    assert reconcile(run).phase == "running"
    with pytest.raises(RefusedError):
        launcher.resume(runs.home, "mine")
    supervisor = run.read_state().supervisor
    assert supervisor is not None and send(supervisor, signal.SIGKILL)
    wait_for(lambda: not run.lock_is_held())
    assert reconcile(run).phase == "lost" and run_processes(run.path) == []
    monkeypatch.setattr(
        launcher, "build_command", lambda _recipe, run_dir, _gpus: fake_command(run_dir, "until-stopped")
    )
    launcher.resume(runs.home, "mine")
    wait_for(lambda: len(run_processes(run.path)) == 1)
    assert stop(run, wait=True).attempt == 2
