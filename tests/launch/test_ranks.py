"""Two real ranks under `accelerate launch`: one is stopped, the launcher is signalled, another user tries to read."""

import re
import signal
import socket
from pathlib import Path

import pytest

from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher
from stackllama_engine.launch.processes import identify, run_processes, send
from stackllama_engine.launch.reconcile import reconcile
from stackllama_engine.launch.run_requests import stop

from .conftest import Runs, wait_for, wait_for_phase
from .ranks_kit import again, check_nobody_comes_in, needs_root, rendezvous_dir_of, start_ranks, steps

pytestmark = pytest.mark.slow  # three processes that import torch


def notices(run: RunDir) -> list[str]:
    return [event.data["message"] for path in run.health_files() for event in EventReader(path).read()]


def stop_and_continue_one_rank(run: RunDir) -> None:
    """Stop one rank: stalled, not failed, with stack dumps; running again when it is released."""
    stopped = identify(int((run.path / "rank-1.pid").read_text()))
    assert stopped is not None and send(stopped, signal.SIGSTOP)
    state = wait_for_phase(run, "stalled")
    assert not state.has_ended and state.cause is None
    stacks = run.attempt_dir(1) / "stacks.txt"
    wait_for(lambda: any("stalled" in notice for notice in notices(run)))
    (said,) = [notice for notice in notices(run) if "stalled" in notice]
    assert f"rank 1 is stopped by a signal (pid {stopped.pid})" in said
    wait_for(lambda: "Stack dump: attempts/001/stacks.txt." in notices(run))
    text = stacks.read_text()
    waiting = text[text.index("rank 0:") :].split("=== ")[0]
    assert "all_reduce" in waiting and "toy_ranks.py" in waiting
    assert "stopped by a signal" in text[text.index("rank 1:") :].split("=== ")[0]
    before = steps(run)
    assert send(stopped, signal.SIGCONT)
    wait_for_phase(run, "running")
    wait_for(lambda: steps(run) > before)
    assert "Run resumed progress." in notices(run)


def signal_the_launcher(run: RunDir, number: signal.Signals) -> None:
    """Signal the launcher: every rank saves, nothing is left, and the cause names the signal."""
    launched = run.read_state().worker
    assert launched is not None and send(launched, number)
    state = wait_for_phase(run, "stopped")
    assert state.exit_code == 75
    assert state.cause == (
        f"`accelerate launch` received {number.name}; its workers stopped. "
        "There is no checkpoint yet: resuming starts from step 0."
    )
    log = (run.attempt_dirs()[-1] / "log.txt").read_text()
    assert f"got signal: {int(number)}" in log, "torchrun did not pass it on: the supervisor had to"
    assert sorted(path.name for path in run.path.glob("saved-by-*")) == ["saved-by-0", "saved-by-1"]
    assert run_processes(run.path) == []


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACKLLAMA_STALL_FLOOR", "1")
    monkeypatch.setenv("STACKLLAMA_TERM_GRACE", "20")


def test_a_stopped_rank_is_a_stall_and_sigusr1_reaches_every_rank(runs: Runs, short_limits: None) -> None:
    run = start_ranks(runs, 2)
    stop_and_continue_one_rank(run)
    place = rendezvous_dir_of(run)
    assert Path(place).is_dir()
    signal_the_launcher(run, signal.SIGUSR1)
    wait_for(lambda: not Path(place).exists())  # nothing of the meeting is left


@needs_root
def test_a_second_user_neither_reads_nor_writes_what_the_ranks_tell_each_other(runs: Runs) -> None:
    run = start_ranks(runs, 2)
    check_nobody_comes_in(run)
    signal_the_launcher(run, signal.SIGTERM)


@pytest.mark.long
def test_ranks_meet_again_after_a_rank_and_after_everything_was_killed(runs: Runs) -> None:
    """Nothing that a dead attempt leaves behind keeps the next one from meeting."""
    run = start_ranks(runs, 2)
    first = rendezvous_dir_of(run)
    killed = identify(int((run.path / "rank-1.pid").read_text()))
    assert killed is not None and send(killed, signal.SIGKILL)
    wait_for(lambda: run.read_state().has_ended, seconds=120)
    assert run.read_state().phase == "failed" and not Path(first).exists()
    again(run)
    second = rendezvous_dir_of(run)
    supervisor = run.read_state().supervisor
    assert supervisor is not None and send(supervisor, signal.SIGKILL)
    wait_for(lambda: reconcile(run).phase == "lost")
    assert run_processes(run.path) == []
    assert not Path(second).exists()
    again(run)
    assert rendezvous_dir_of(run) not in (first, second)
    signal_the_launcher(run, signal.SIGTERM)


@needs_root
@pytest.mark.long
def test_a_second_user_gets_nothing_of_a_real_sft_on_two_ranks(home: Home) -> None:
    keys = (
        "model_name_or_path=demo",
        "dataset_name=demo",
        "use_cpu=true",
        "num_processes=2",
        "load_in_8bit=false",
        "max_steps=100000",
        "save_steps=0",
        "eval_steps=0",
    )
    run = launcher.launch(launcher.plan(home, load_recipe(Stage.SFT, None, keys)))
    wait_for(lambda: run.read_state().has_ended or steps(run) > 0, seconds=300)
    assert not run.read_state().has_ended, run.read_state()
    check_nobody_comes_in(run)
    assert stop(run, wait=True).exit_code == 75


def kill_one_rank(run: RunDir, rank: int) -> State:
    """Kill a rank from outside: the state names the rank and the signal, whatever the other rank reports."""
    killed = identify(int((run.path / f"rank-{rank}.pid").read_text()))
    assert killed is not None and send(killed, signal.SIGKILL)
    wait_for(lambda: run.read_state().has_ended, seconds=120)
    state = run.read_state()
    assert (state.phase, state.exit_code) == ("failed", 137), state
    cause = state.cause or ""
    assert cause.startswith(f"rank {rank} on {socket.gethostname()} was killed by SIGKILL in phase train"), cause
    assert re.search(r"he run used [\d.]+ [GM]iB of [\d.]+ [GM]iB \(", cause)
    assert run_processes(run.path) == []
    return state


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_killed_rank_is_named_with_its_host_its_signal_and_used_memory_and_limit(
    runs: Runs, short_limits: None, rank: int
) -> None:
    run = start_ranks(runs, 2)
    kill_one_rank(run, rank)
    if rank == 1:
        log = (run.attempt_dir(1) / "log.txt").read_text()
        assert re.search(r"Connection (closed|reset) by peer", log), "rank 0 wrote nothing of its peer"
