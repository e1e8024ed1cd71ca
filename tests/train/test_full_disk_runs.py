"""Real stages, launched as people do, on a disk that fills under them: before a save, at it, and at the result."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.full_disk import MIB, SmallDisk, small_disk

from stackllama_engine.contract.disk_space import RESERVE
from stackllama_engine.contract.history import History, read_history
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.requests import WAITING_FOR_ROOM
from stackllama_engine.contract.run_dir import Home, ProcessId, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.launcher import launch, plan, resume
from stackllama_engine.launch.processes import command_line, run_processes, send
from stackllama_engine.launch.reconcile import reconcile
from stackllama_engine.launch.run_requests import stop as stop_run
from stackllama_engine.train import checkpoint

from .in_process import finish, write_rewards
from .test_full_disk import KEYS, assert_same_weights
from .toy import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

STEPS = 12
MORE = (f"max_steps={STEPS}", "save_steps=4")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 96 * MIB, inodes=4000) as disk:
        yield disk
        for run in Home(disk.path / "home").runs():
            disk.clear()
            stop_run(run, wait=True)


def start(disk: SmallDisk, base: Path, stage: Stage, *more: str) -> RunDir:
    rewards = base.parent / "rewards"
    write_rewards(rewards)
    given = () if stage is Stage.MERGE else (f"model_name_or_path={base}", *KEYS[stage], *MORE)
    given += (f"reward_func_paths=[{rewards}]",) if stage is Stage.PPO else ()
    return launch(plan(Home(disk.path / "home"), load_recipe(stage, None, (*given, *more))))


def history(run: RunDir) -> History:
    return read_history(path for path in run.events_files() if path.exists())


def frozen(run: RunDir, there: Callable[[History], bool], do: Callable[[], None]) -> None:
    """Stop the worker where it is for certain, do something, and continue it."""
    deadline = time.monotonic() + 300
    while True:
        assert time.monotonic() < deadline and not reconcile(run).has_ended, "it was never seen there"
        if there(history(run)) and (worker := worker_of(run)) is not None and send(worker, signal.SIGSTOP):
            time.sleep(0.05)
            if there(history(run)):
                break
            send(worker, signal.SIGCONT)
        time.sleep(0.002)
    do()
    send(worker, signal.SIGCONT)


def worker_of(run: RunDir) -> ProcessId | None:
    """Find the process that trains, below accelerate's."""
    for process in run_processes(run.path):
        words = command_line(process)
        if "stackllama_engine.train " in words and "accelerate" not in words:
            return process
    return None


def ended(run: RunDir) -> State:
    return wait_for(run, lambda state: state.has_ended)


WHEN: dict[str, Callable[[History], bool]] = {
    "before a save": lambda seen: 1 <= seen.step < 4,
    "after a save": lambda seen: 4 <= seen.step < STEPS - 1,
    "before the result": lambda seen: seen.phase == "evaluate" and seen.step == STEPS,
}
TRAINING = (Stage.SFT, Stage.REWARD, Stage.PPO)


@pytest.mark.parametrize("what", ["blocks", "inodes"])
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("stage", TRAINING)
def test_never_freed_it_is_saved_and_stopped_or_finished_and_resumed_to_the_same(
    stage: Stage, when: str, what: str, disk: SmallDisk, base: Path, shared_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, _ = finish(shared_home, base, stage, *KEYS[stage], *MORE)
    monkeypatch.setenv("STACKLLAMA_DISK_PATIENCE", "1")
    run = start(disk, base, stage)
    frozen(run, WHEN[when], disk.fill if what == "blocks" else disk.take_inodes)
    state = ended(run)
    assert not (run.path / RESERVE).exists()
    if state.phase == "stopped":
        assert state.exit_code == 75 and state.cause is not None and state.cause.startswith("The disk is full: ")
        found, skipped = checkpoint.newest(run.checkpoints)
        assert found is not None and skipped == [] and checkpoint.step_of(found) == history(run).step
        disk.clear()
        resume(Home(disk.path / "home"), run.id)
        state = ended(run)
    assert (state.phase, state.exit_code) == ("finished", 0)
    assert_same_weights(run, wanted)


@pytest.mark.parametrize("stage", TRAINING)
def test_run_resumes_by_itself_when_there_is_room_again(
    stage: Stage, disk: SmallDisk, base: Path, shared_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, _ = finish(shared_home, base, stage, *KEYS[stage], *MORE)
    run = start(disk, base, stage)
    frozen(run, WHEN["before a save"], disk.fill)
    wait_for(run, lambda _: history(run).phase == WAITING_FOR_ROOM)
    assert "free of the" in str(history(run).at) and reconcile(run).phase == "running"
    disk.clear()
    assert (ended(run).phase, ended(run).attempt) == ("finished", 1)
    assert_same_weights(run, wanted)


@pytest.mark.parametrize("what", ["blocks", "inodes"])
def test_a_stop_works_while_it_waits(what: str, disk: SmallDisk, base: Path) -> None:
    run = start(disk, base, Stage.SFT)
    frozen(run, WHEN["before a save"], disk.fill if what == "blocks" else disk.take_inodes)
    wait_for(run, lambda _: history(run).phase == WAITING_FOR_ROOM)
    state = stop_run(run, wait=True)
    assert (state.phase, state.exit_code) == ("stopped", 75) and "The disk is full" in str(state.cause)
    found, _ = checkpoint.newest(run.checkpoints)
    assert found is not None and checkpoint.step_of(found) == history(run).step


@pytest.mark.parametrize("what", ["blocks", "inodes"])
@pytest.mark.parametrize("phase", ["load", "merge"])
def test_a_merge_fails_with_one_sentence_and_leaves_the_old_one(
    phase: str, what: str, disk: SmallDisk, base: Path, shared_home: Home
) -> None:
    trained, _ = finish(shared_home, base, Stage.SFT, *KEYS[Stage.SFT], *MORE)
    merging = (f"adapter_path={trained.adapter}", "use_cpu=true", "dtype=float32")
    old = start(disk, base, Stage.MERGE, *merging)
    assert ended(old).phase == "finished"
    before = {path.name: path.read_bytes() for path in old.merged.iterdir()}
    run = start(disk, base, Stage.MERGE, *merging)
    frozen(run, lambda seen: seen.phase == phase, disk.fill if what == "blocks" else disk.take_inodes)
    state = ended(run)
    assert (state.phase, state.exit_code) == ("failed", 1) and state.cause is not None
    assert state.cause.startswith("The disk is full: the merged model takes ") and "\n" not in state.cause
    assert [path.name for path in run.path.iterdir() if "merged" in path.name or ".tmp" in path.name] == []
    assert {path.name: path.read_bytes() for path in old.merged.iterdir()} == before
    disk.clear()
    resume(Home(disk.path / "home"), run.id)
    assert ended(run).phase == "finished"


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.PPO])
def test_two_ranks_wait_together_are_stopped_together_and_resumed(
    stage: Stage, disk: SmallDisk, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STACKLLAMA_DISK_PATIENCE", "1")
    run = start(disk, base, stage, "num_processes=2")
    frozen(run, WHEN["before a save"], disk.fill)
    state = ended(run)
    assert (state.phase, state.exit_code) == ("stopped", 75) and "The disk is full" in str(state.cause)
    found, _ = checkpoint.newest(run.checkpoints)
    assert found is not None and checkpoint.step_of(found) == history(run).step
    disk.clear()
    resume(Home(disk.path / "home"), run.id)
    assert ended(run).phase == "finished"
