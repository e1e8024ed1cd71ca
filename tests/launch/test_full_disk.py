"""Supervisor, stop and reconcile on a full disk."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.full_disk import MIB, SmallDisk, small_disk

from stackllama_engine.contract.children import CHILDREN
from stackllama_engine.contract.disk_space import RESERVE, Free, Reserve
from stackllama_engine.contract.errors import RefusedError
from stackllama_engine.contract.events import EventReader, EventWriter
from stackllama_engine.contract.recipe_io import build_recipe, dump_recipe
from stackllama_engine.contract.requests import WAITING_FOR_ROOM
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import disk as disk_module
from stackllama_engine.launch.attempt_outcome import Outcome, from_status
from stackllama_engine.launch.autopsy import explain
from stackllama_engine.launch.disk import DiskWatch
from stackllama_engine.launch.oom import OomWatch
from stackllama_engine.launch.pipeline import Coordinator, _Stopped
from stackllama_engine.launch.processes import kill_run_processes, send
from stackllama_engine.launch.reconcile import reconcile
from stackllama_engine.launch.run_requests import ask, stop

from .conftest import Runs, wait_for, wait_for_phase


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 8 * MIB, inodes=300) as disk:
        yield disk


@pytest.fixture
def runs(disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    monkeypatch.setenv("STACKLLAMA_STOP_GRACE", "20")
    monkeypatch.setenv("STACKLLAMA_DISK_CRITICAL", "0")
    runs = Runs(Home(disk.path / "home"))
    yield runs
    disk.clear()
    for run in runs.home.runs():
        if supervisor := run.read_state().supervisor:
            send(supervisor, signal.SIGKILL)
        kill_run_processes(run.path)


def fill(disk: SmallDisk, what: str) -> None:
    disk.fill()
    if what == "inodes":
        disk.take_inodes()


@pytest.mark.parametrize("what", ["blocks", "inodes"])
def test_a_run_on_a_full_disk_is_stopped_and_its_end_is_recorded(runs: Runs, disk: SmallDisk, what: str) -> None:
    run = runs.start("until-stopped")
    wait_for(lambda: (run.path / "worker.pid").exists())
    wait_for_phase(run, "running")
    fill(disk, what)
    state = stop(run, wait=True)
    assert (state.phase, state.exit_code, state.cause) == ("stopped", 75, "saved")
    assert run.read_state() == state, "on the disk, not only in memory"
    assert [path.name for path in run.path.iterdir() if "spare" in path.name] == []


def test_without_room_for_a_request_nothing_else_can_be_asked(runs: Runs, disk: SmallDisk) -> None:
    run = runs.start("until-stopped")
    wait_for_phase(run, "running")
    disk.take_inodes()
    with pytest.raises(RefusedError, match=r"The disk is full: .* could not be written. Make room under"):
        ask(run, "save")


def test_a_stop_without_room_and_without_a_supervisor_says_so(runs: Runs, disk: SmallDisk) -> None:
    run = runs.create()
    disk.take_inodes()
    with pytest.raises(RefusedError, match=r"The disk is full: the request to stop .* Make room under"):
        stop(run, wait=False)


def test_who_looks_knows_how_a_run_ended_though_it_cannot_be_recorded(runs: Runs, disk: SmallDisk) -> None:
    run = runs.create()
    run.write_state(State(stage=Stage.SFT, phase="running", attempt=1, created=1.0))
    os.close(run.acquire_lock())
    run.attempt_dir(1).mkdir()
    writer = EventWriter(run.attempt_dir(1) / "events.jsonl")
    writer.write("end", data={"exit_code": 75, "cause": "saved"})
    writer.close()
    Reserve(run.path).hold(MIB, 4)
    fill(disk, "inodes")
    disk.fill()
    assert (reconcile(run).phase, reconcile(run).cause) == ("stopped", "saved")
    assert not (run.path / RESERVE).exists(), "given back"
    disk.clear()
    assert reconcile(run) == run.read_state() and run.read_state().phase == "stopped"


def test_an_attempt_that_finds_no_room_leaves_no_folder(runs: Runs, disk: SmallDisk) -> None:
    run, _ = runs.end("fail")
    wait_for(lambda: not run.lock_is_held())
    disk.fill()
    with pytest.raises(OSError, match="No space left on device"):
        runs.again(run, "finish")
    assert run.attempt_dirs() == [run.attempt_dir(1)] and run.read_state().phase == "failed"


# a pipeline


@pytest.fixture
def coordinator(runs: Runs) -> Iterator[Coordinator]:
    keys = {"model_name_or_path": "gpt2", "load_in_8bit": False}
    run = runs.home.create(Stage.PIPELINE, dump_recipe(build_recipe(Stage.PIPELINE, keys)), "p")
    run.attempt_dir(1).mkdir()
    events = EventWriter(run.attempt_dir(1) / "events.jsonl")
    yield Coordinator(run, events)
    events.close()


def told(coordinator: Coordinator) -> str:
    events = EventReader(coordinator.run.attempt_dir(1) / "events.jsonl").read()
    return "\n".join(event.data["message"] for event in events if event.kind == "health")


def freed_at_the_second_look(coordinator: Coordinator, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([False, False])

    def look() -> bool:
        if next(looks, None) is None:
            disk.clear()
        return False

    monkeypatch.setattr("stackllama_engine.launch.pipeline._ROOM_SECONDS", 0.1)
    monkeypatch.setattr(coordinator, "stop_requested", look)


@pytest.mark.parametrize("what", ["blocks", "inodes"])
def test_a_pipeline_waits_for_room_for_its_next_stage(
    what: str, coordinator: Coordinator, disk: SmallDisk, fake_stages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(disk, what)
    freed_at_the_second_look(coordinator, disk, monkeypatch)
    state = coordinator._complete(CHILDREN[0], "p-sft")
    assert (state.phase, state.attempt) == ("finished", 1)
    assert WAITING_FOR_ROOM in told(coordinator) and "there is room on the disk again" in told(coordinator)


def test_a_pipeline_that_waits_for_room_serves_a_stop(
    coordinator: Coordinator, disk: SmallDisk, fake_stages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(disk, "inodes")
    asked = iter([False])
    monkeypatch.setattr(coordinator, "stop_requested", lambda: next(asked, True))
    with pytest.raises(_Stopped, match="The disk is full, and a stop was asked for meanwhile"):
        coordinator._complete(CHILDREN[0], "p-sft")


def test_a_pipelines_result_is_written_when_there_is_room(
    coordinator: Coordinator, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = State(stage=Stage.SFT, phase="finished", attempt=1, created=1.0)
    monkeypatch.setattr(coordinator, "_complete", lambda *_: done)
    monkeypatch.setattr(coordinator, "_result", lambda _: {"text": "x" * 5000})
    fill(disk, "inodes")
    freed_at_the_second_look(coordinator, disk, monkeypatch)
    coordinator.coordinate()
    assert len(coordinator.run.read_json("result.json")["children"]) == 6
    assert "result.json could not be written yet" in told(coordinator)


def test_a_pipeline_stops_its_child_though_no_request_can_be_written(
    runs: Runs, coordinator: Coordinator, disk: SmallDisk
) -> None:
    child = runs.start("until-stopped")
    wait_for((child.path / "worker.pid").exists)
    wait_for_phase(child, "running")
    fill(disk, "inodes")
    coordinator.stop_asked = True
    with pytest.raises(_Stopped, match=f"Run `{child.id}` was stopped. saved"):
        coordinator._follow(child)


# the cause


def wordless(run: RunDir, code: int = 1) -> str | None:
    outcome = Outcome(phase="failed", exit_code=code, cause=from_status(signal.SIGKILL, []).cause)
    return explain(run, run.read_state(), outcome, silent=True, killer=OomWatch().poll())  # as the supervisor asks


@pytest.mark.parametrize("code", [1, 120, 128 + signal.SIGKILL, 128 + signal.SIGBUS])
def test_a_worker_without_last_words_on_a_full_disk_is_not_taken_for_one_that_used_up_memory(
    runs: Runs, disk: SmallDisk, code: int
) -> None:
    run = runs.create()
    run.write_state(msgspec.structs.replace(run.read_state(), phase="running", attempt=1))
    run.attempt_dir(1).mkdir()
    disk.fill()
    cause = wordless(run, code)
    assert cause is not None and cause.startswith("The disk is full (0 MiB free), and the worker ended")
    assert "memory" not in cause and str(run.path) in cause


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGBUS], ids=["exit 1", "SIGBUS"])
def test_the_supervisor_names_the_disk_of_a_worker_that_dies_there_wordless(
    runs: Runs, disk: SmallDisk, number: signal.Signals
) -> None:
    run = runs.start("wordless")
    wait_for_phase(run, "running")
    wait_for((run.path / "worker.pid").exists)
    disk.fill()
    worker = run.read_state().worker
    assert worker is not None and send(worker, number)
    cause = wait_for_phase(run, "failed").cause
    assert cause is not None and cause.startswith("The disk is full (") and "memory" not in cause


def test_who_finds_a_run_whose_supervisor_died_on_a_full_disk_names_the_disk(runs: Runs, disk: SmallDisk) -> None:
    run = runs.create()
    run.write_state(State(stage=Stage.SFT, phase="running", attempt=1, created=1.0))
    run.attempt_dir(1).mkdir()
    disk.fill()
    cause = reconcile(run).cause
    assert cause is not None and "The disk is full (0 MiB free): make room under " in cause


def test_full_disk_is_recognized_by_log_and_phase(runs: Runs) -> None:
    run = runs.create()
    run.write_state(msgspec.structs.replace(run.read_state(), phase="running", attempt=1))
    run.attempt_dir(1).mkdir()
    assert "disk" not in (wordless(run) or "")
    log = run.attempt_dir(1) / "log.txt"
    log.write_text("12 bytes of output were lost while the disk was full.\n")
    assert "The disk is full (its log reports it; now " in (wordless(run) or "")
    log.unlink()
    writer = EventWriter(run.attempt_dir(1) / "events.jsonl")
    writer.write("phase", phase=WAITING_FOR_ROOM)
    assert "The disk is full (it was waiting for disk space; now " in (wordless(run) or "")


# the disk watch


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> list[Free]:
    """Return a list with one element: the free space."""
    found = [Free(1 << 40, 1 << 20)]
    monkeypatch.setattr(disk_module, "free_room", lambda _: found[0])
    return found


def test_a_run_with_a_reserve_is_not_stopped_but_waits(tmp_path: Path, room: list[Free]) -> None:
    run = Home(tmp_path / "home").create(Stage.SFT, "{}")
    if not Reserve(run.path).hold(3 * MIB, 4):
        pytest.skip("this file system holds nothing back")
    watch = DiskWatch(run)
    room[0] = Free(10 * MIB, None)
    notice = watch.poll()
    assert notice is not None and not notice.critical
    assert "10 MiB free" in notice.message and "3 MiB are reserved for a last checkpoint" in notice.message
    assert watch.poll() is None
    room[0] = Free(1 << 40, None)
    assert watch.poll() is None
    Reserve(run.path).release()
    room[0] = Free(10 * MIB, None)
    notice = watch.poll()
    assert notice is not None and notice.critical


def test_disk_watch_monitors_free_inodes(tmp_path: Path, room: list[Free]) -> None:
    watch = DiskWatch(Home(tmp_path / "home").create(Stage.SFT, "{}"))
    room[0] = Free(1 << 40, 900)
    notice = watch.poll()
    assert notice is not None and not notice.critical and "900 inodes free" in notice.message
    room[0] = Free(1 << 40, 10)
    notice = watch.poll()
    assert notice is not None and notice.critical and "10 inodes free on the file system of the runs" in notice.message
    room[0] = Free(1 << 40, None)  # a file system that counts none
    assert DiskWatch(Home(tmp_path / "other").create(Stage.SFT, "{}")).poll() is None
