"""The directory of a run is renamed, replaced or removed while it trains: the run ends, with the cause if possible."""

import shutil
import signal
import threading
from pathlib import Path

import pytest

from stackllama_engine.contract.errors import RefusedError, UsageError
from stackllama_engine.contract.run_dir import RunDir, State
from stackllama_engine.launch import launcher
from stackllama_engine.launch.processes import alive, run_processes, send, usage
from stackllama_engine.launch.reconcile import reconcile
from stackllama_engine.launch.run_requests import stop

from .conftest import Runs, wait_for, wait_for_phase


def at_work(runs: Runs, mode: str = "until-stopped") -> RunDir:
    run = runs.start(mode, "mine")
    wait_for(lambda: (run.path / ("worker.pid" if mode == "until-stopped" else "orphan.pid")).exists())
    wait_for_phase(run, "running")
    return run


def rename(run: RunDir, name: str) -> RunDir:
    return RunDir(run.path.rename(run.path.with_name(name)))


def assert_nothing_is_left(run: RunDir) -> None:
    wait_for(lambda: not run.lock_is_held())
    assert run_processes(run.path) == []


def test_a_renamed_run_saves_and_stops_with_the_reason(runs: Runs, fake_stages: None) -> None:
    run = at_work(runs)
    renamed = rename(run, "renamed")
    with pytest.raises(RefusedError, match="alive"):
        launcher.resume(runs.home, "renamed")  # no second trainer beside the first
    state = wait_for_phase(renamed, "stopped")
    assert state.exit_code == 75
    assert f"directory {run.path} was renamed to renamed" in str(state.cause) and "saved" in str(state.cause)
    assert_nothing_is_left(renamed)
    assert not run.path.is_symlink() and not run.path.exists()
    assert list(runs.home.runs_dir.iterdir()) == [renamed.path]
    launcher.resume(runs.home, "renamed")
    assert wait_for_phase(renamed, "finished").attempt == 2


def test_stop_waits_for_a_renamed_run_by_either_name(runs: Runs) -> None:
    run = at_work(runs)
    ended: list[State] = []
    waiting = threading.Thread(target=lambda: ended.append(stop(run, wait=True)))
    renamed = rename(run, "renamed")
    state = stop(renamed, wait=True)
    assert state.phase == "stopped" and "renamed to renamed" in str(state.cause)
    assert_nothing_is_left(renamed)
    # By the old name, renamed while it is waited for; the worker is slow to stop.
    run = runs.start("stubborn", "mine")
    wait_for(lambda: (run.path / "orphan.pid").exists())
    waiting.start()
    wait_for(lambda: (run.path / "control" / "stop").exists())
    third = rename(run, "third")
    waiting.join(30)
    assert [state.phase for state in ended] == ["stopped"] and ended == [third.read_state()]
    assert_nothing_is_left(third)


def test_a_renamed_run_writes_nothing_into_a_new_run_of_its_name(runs: Runs) -> None:
    """The worker knows the path only: it is killed before it saves into another run's directory."""
    run = at_work(runs)
    supervisor = run.read_state().supervisor
    assert supervisor is not None
    wait_for(lambda: (used := usage(supervisor)) is not None and used.state == "S")  # not amid a write of its state
    assert send(supervisor, signal.SIGSTOP)  # until both have happened
    renamed = rename(run, "renamed")
    other = runs.create("mine")
    send(supervisor, signal.SIGCONT)
    before = sorted(path.name for path in other.path.rglob("*"))
    state = wait_for_phase(renamed, "stopped")
    assert "renamed to renamed" in str(state.cause)
    assert_nothing_is_left(renamed)
    assert other.read_state().phase == "queued"
    assert sorted(path.name for path in other.path.rglob("*")) in (before, sorted([*before, "lock"]))


def test_a_run_whose_directory_is_removed_ends_at_once(runs: Runs) -> None:
    run = at_work(runs)
    (worker,) = run_processes(run.path)
    supervisor = run.read_state().supervisor
    with pytest.raises(UsageError, match="cannot be read"):
        while run.path.exists():  # a running process may make a file in it meanwhile
            shutil.rmtree(run.path, ignore_errors=True)
        stop(run, wait=True)
    wait_for(lambda: not alive(worker) and not alive(supervisor))


def test_the_link_of_a_killed_supervisor_is_removed(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACKLLAMA_STOP_GRACE", "60")
    run = at_work(runs, "stubborn")  # which takes its time
    renamed = rename(run, "renamed")
    wait_for(run.path.is_symlink)
    supervisor = run.read_state().supervisor
    assert supervisor is not None and send(supervisor, signal.SIGKILL)
    wait_for(lambda: not renamed.lock_is_held())
    assert reconcile(renamed).phase == "lost" and run_processes(renamed.path) == []
    assert list(runs.home.runs_dir.iterdir()) == [renamed.path]


@pytest.mark.long
def test_runs_of_a_renamed_home_save_and_stop(runs: Runs, tmp_path: Path) -> None:
    run = at_work(runs)
    moved = RunDir(runs.home.path.rename(tmp_path / "moved") / "runs" / "mine")
    state = wait_for_phase(moved, "stopped")
    assert f"renamed to {moved.path}" in str(state.cause)
    assert_nothing_is_left(moved)
    with pytest.raises(UsageError):
        reconcile(run)
