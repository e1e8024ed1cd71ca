"""Two real ranks under a real `accelerate launch`: one that is stopped, and signals that come to the launcher."""

import os
import signal
from pathlib import Path

import msgspec
import pytest

from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher
from stackllama_engine.launch.argv import build_command
from stackllama_engine.launch.machine import resolve_machine
from stackllama_engine.launch.processes import identify, run_processes, send

from .conftest import Runs, wait_for, wait_for_phase

pytestmark = pytest.mark.slow  # three processes that import torch

TOY = Path(__file__).with_name("toy_ranks.py")


def start_ranks(runs: Runs, processes: int) -> RunDir:
    """The command of a stage, with the toy in the stage's place."""
    run = runs.create()
    recipe = msgspec.structs.replace(load_recipe(Stage.SFT, run.recipe_file), num_processes=processes)
    command = build_command(resolve_machine(recipe, []), run.path, [])
    argv = [*command.argv[: command.argv.index("stackllama_engine.train") - 1], str(TOY), str(run.path)]
    lock = run.acquire_lock()
    try:
        launcher.start_supervisor(run, lock, msgspec.structs.replace(command, argv=argv), [])
    finally:
        os.close(lock)
    wait_for(lambda: steps(run) > 5, seconds=120)
    return run


def steps(run: RunDir) -> int:
    path = run.attempt_dir(1) / "events.jsonl"
    return path.read_bytes().count(b'"progress"') if path.is_file() else 0


def remarks(run: RunDir) -> list[str]:
    return [event.data["message"] for path in run.health_files() for event in EventReader(path).read()]


def stop_one_rank_and_let_it_go_on(run: RunDir) -> None:
    """Stalled, never failed, with the stacks of whoever has one; running again when it is released."""
    stopped = identify(int((run.path / "rank-1.pid").read_text()))
    assert stopped is not None and send(stopped, signal.SIGSTOP)
    state = wait_for_phase(run, "stalled")
    assert not state.has_ended and state.cause is None
    stacks = run.attempt_dir(1) / "stacks.txt"
    wait_for(lambda: any("stands still" in remark for remark in remarks(run)))
    (said,) = [remark for remark in remarks(run) if "stands still" in remark]
    assert f"rank 1 is stopped by a signal (pid {stopped.pid})" in said
    wait_for(lambda: "Its stacks: attempts/001/stacks.txt." in remarks(run))
    text = stacks.read_text()
    waiting = text[text.index("rank 0:") :].split("=== ")[0]
    assert "all_reduce" in waiting and "toy_ranks.py" in waiting
    assert "stopped by a signal" in text[text.index("rank 1:") :].split("=== ")[0]
    before = steps(run)
    assert send(stopped, signal.SIGCONT)
    wait_for_phase(run, "running")
    wait_for(lambda: steps(run) > before)
    assert "It goes on." in remarks(run)


def signal_the_launcher(run: RunDir, number: signal.Signals) -> None:
    """Every rank saves, nothing is left, and it is said what came."""
    launched = run.read_state().worker
    assert launched is not None and send(launched, number)
    state = wait_for_phase(run, "stopped")
    assert state.exit_code == 75
    assert state.cause == f"{number.name} came to `accelerate launch`; its workers saved and stopped."
    log = (run.attempt_dir(1) / "log.txt").read_text()
    assert f"got signal: {int(number)}" in log, "torchrun did not pass it on: the supervisor had to"
    assert sorted(path.name for path in run.path.glob("saved-by-*")) == ["saved-by-0", "saved-by-1"]
    assert run_processes(run.path) == []


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACKLLAMA_STALL_FLOOR", "1")
    monkeypatch.setenv("STACKLLAMA_TERM_GRACE", "20")


def test_a_stopped_rank_is_a_stall_and_sigusr1_reaches_every_rank(runs: Runs, short_limits: None) -> None:
    run = start_ranks(runs, 2)
    stop_one_rank_and_let_it_go_on(run)
    signal_the_launcher(run, signal.SIGUSR1)
