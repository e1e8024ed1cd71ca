"""Disk space: a warning, and a stop after a save while there is space for it."""

import os
from pathlib import Path

import pytest

from stackllama_engine.contract.disk_space import Free
from stackllama_engine.contract.events import Event, EventReader
from stackllama_engine.contract.run_dir import Home, Launch, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import disk
from stackllama_engine.launch.disk import DiskWatch, free_room
from stackllama_engine.launch.run_requests import stop
from stackllama_engine.launch.watch import Watch

from .conftest import Clock, Runs, wait_for, wait_for_phase

MIB = 1 << 20


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return Home(tmp_path / "home").create(Stage.SFT, "{}")


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list with one element: free MiB."""
    free = [100_000]
    monkeypatch.setattr(disk, "free_room", lambda _: Free(free[0] * MIB, None))
    return free


def notices(run: RunDir) -> list[str]:
    return [event.data["message"] for path in run.health_files() for event in EventReader(path).read()]


def test_disk_watch_warns_then_stops_once_each(run: RunDir, room: list[int]) -> None:
    watch = DiskWatch(run)
    assert watch.poll() is None
    room[0] = 1000
    notice = watch.poll()
    assert notice is not None and not notice.critical
    assert notice.message == (
        "Disk space is low on the file system of the runs: 1000 MiB free; below 64 MiB the run saves and stops."
    )
    room[0] = 1100
    assert watch.poll() is None
    room[0] = 5000
    assert watch.poll() is None
    room[0] = 900
    assert watch.poll() is not None, "there was room in the meantime: warned of anew"
    room[0] = 63
    notice = watch.poll()
    assert (
        notice is not None and notice.critical and "63 MiB free" in notice.message and "then resume" in notice.message
    )
    assert watch.poll() is None


def test_disk_limits_follow_the_checkpoint_size(run: RunDir, room: list[int]) -> None:
    watch = DiskWatch(run)
    checkpoint = run.checkpoints / "step-000010"
    checkpoint.mkdir()
    with (checkpoint / "weights").open("wb") as file:
        file.truncate(400 * MIB)
    assert watch.critical == 64 * MIB
    watch.measure_checkpoint()
    assert watch.critical == 600 * MIB and watch.warning == 2400 * MIB
    room[0] = 599
    notice = watch.poll()
    assert notice is not None and notice.critical


def test_disk_limits_of_the_environment_win(run: RunDir, room: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACKLLAMA_DISK_CRITICAL", "0")
    monkeypatch.setenv("STACKLLAMA_DISK_WARNING", "10")
    watch = DiskWatch(run)
    room[0] = 9
    notice = watch.poll()
    assert notice is not None and notice.message == "Disk space is low on the file system of the runs: 9 MiB free."
    room[0] = 0
    assert watch.poll() is None


def test_free_room_is_what_this_user_may_write(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    assert 0 < free_room(tmp_path).bytes <= found.f_bfree * found.f_frsize


def test_a_run_is_saved_and_stopped_while_there_is_room_for_that(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACKLLAMA_DISK_CRITICAL", "1e12")
    monkeypatch.setenv("STACKLLAMA_STOP_GRACE", "30")
    run, state = runs.end("saves-silently")
    assert (state.phase, state.exit_code) == ("stopped", 75)
    assert state.cause is not None and "The disk is nearly full" in state.cause and "then resume" in state.cause
    assert notices(run)[-1] == state.cause


def test_stop_cause_names_the_disk_before_the_workers_cause(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACKLLAMA_DISK_CRITICAL", "1e12")
    monkeypatch.setenv("STACKLLAMA_STOP_GRACE", "30")
    _, state = runs.end("trains")
    assert state.cause is not None and state.cause.startswith("The disk is nearly full: ")
    assert state.cause.endswith("Free some space, then resume. saved")


def watched(run: RunDir, stage: Stage, clock: Clock) -> Watch:
    launch = Launch(argv=[], cwd="/", host="here", created=1.0)
    return Watch(run, run.attempt_dir(1), launch, stage, clock)


def test_a_run_that_still_loads_is_not_stopped(run: RunDir, room: list[int], clock: Clock) -> None:
    """It may soon hold a reserve, and wait."""
    run.attempt_dir(1).mkdir()
    watch = watched(run, Stage.SFT, clock)
    room[0] = 10
    watch.poll()
    assert watch.stop_cause is None
    assert notices(run) == ["Disk space is low on the file system of the runs: 10 MiB free."]
    watch.event(Event(seq=1, time=clock.now, kind="progress", step=1, total_steps=2))
    clock.now += 100
    watch.poll()
    assert watch.stop_cause is not None and "The disk is nearly full: 10 MiB free" in watch.stop_cause
    watch.end()


def test_a_pipeline_is_not_stopped_by_disk_space(run: RunDir, room: list[int], clock: Clock) -> None:
    run.attempt_dir(1).mkdir()
    watch = watched(run, Stage.PIPELINE, clock)
    watch.event(Event(seq=1, time=clock.now, kind="progress", step=1, total_steps=6))
    room[0] = 0
    watch.poll()
    assert watch.stop_cause is None
    assert notices(run) == ["Disk space is low on the file system of the runs: 0 MiB free."]
    watch.end()


def test_a_disk_warning_stops_nothing(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACKLLAMA_DISK_WARNING", "1e12")
    monkeypatch.setenv("STACKLLAMA_DISK_CRITICAL", "0")
    run = runs.start("until-stopped")
    wait_for(lambda: len(notices(run)) == 1)
    assert wait_for_phase(run, "running").cause is None
    assert stop(run, wait=True).exit_code == 75
    assert notices(run)[0].startswith("Disk space is low")
