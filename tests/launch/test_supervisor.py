"""The real supervisor with fake workers: every way an attempt can end."""

import contextlib
import errno
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import msgspec
import pytest

from stackllama_engine.contract.errors import RefusedError
from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.run_dir import ProcessId, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher
from stackllama_engine.launch.argv import Command
from stackllama_engine.launch.launcher import start_supervisor
from stackllama_engine.launch.processes import alive, identify, run_processes, send
from stackllama_engine.launch.reconcile import newest_end_event, reconcile
from stackllama_engine.launch.run_requests import ask, stop
from stackllama_engine.launch.shutdown import Patience
from stackllama_engine.launch.supervisor import Supervisor

from .conftest import Runs, fake_command, wait_for, wait_for_phase


def supervisor_of(run: RunDir) -> ProcessId:
    supervisor = run.read_state().supervisor
    assert supervisor is not None
    return supervisor


def test_supervisor_records_a_finished_run(runs: Runs) -> None:
    run, state = runs.end("finish")
    assert (state.phase, state.exit_code, state.cause, state.attempt) == ("finished", 0, None, 1)
    assert state.started is not None and state.ended is not None and state.ended >= state.started
    assert (run.attempt_dir(1) / "log.txt").read_text() == "fake worker: finish\n"
    wait_for(lambda: not run.lock_is_held())
    assert not (run.attempt_dir(1) / "supervisor.txt").exists(), "the supervisor had something to complain about"


def test_failure_keeps_the_cause_of_the_end_event(runs: Runs) -> None:
    _, state = runs.end("fail")
    assert (state.phase, state.exit_code, state.cause) == ("failed", 1, "out of memory in train")


def test_exit_status_counts_when_there_is_no_end_event(runs: Runs) -> None:
    _, state = runs.end("code")
    assert (state.phase, state.exit_code) == ("failed", 7)
    assert state.cause == "exit code 7: RuntimeError: no such thing"
    assert state.last_lines == ["fake worker: code", "RuntimeError: no such thing"]


def test_supervisor_records_the_signal_that_killed_the_worker(runs: Runs) -> None:
    _, state = runs.end("kill")
    assert (state.phase, state.exit_code) == ("failed", 137)
    assert state.cause is not None and "killed by SIGKILL" in state.cause and "dmesg" in state.cause


@pytest.mark.parametrize("mode", ["lost-a-rank", "stopped-without-a-rank"])
def test_a_killed_rank_is_the_cause_whatever_rank_0_says_of_it(runs: Runs, mode: str) -> None:
    run = runs.create()
    lock = run.acquire_lock()
    command = fake_command(run.path, mode)
    two = command.environment | {"STACKLLAMA_WORLD_SIZE": "2"}
    start_supervisor(run, lock, msgspec.structs.replace(command, environment=two), launcher.Record())
    os.close(lock)
    wait_for(lambda: (run.path / "rank-1.pid").exists() and (run.path / "rank-1.pid").read_text() != "")
    wait_for(lambda: pidfds(supervisor_of(run)) >= 2, seconds=60)  # it knows both ranks
    os.kill(int((run.path / "rank-1.pid").read_text()), signal.SIGKILL)
    wait_for(lambda: run.read_state().has_ended, seconds=60)
    state = run.read_state()
    assert (state.phase, state.exit_code) == ("failed", 137), state
    assert (state.cause or "").startswith(f"rank 1 on {socket.gethostname()} was killed by SIGKILL in phase train")


def pidfds(process: ProcessId) -> int:
    """How many it holds besides the one of the worker, which it opens for each look."""
    count = -1
    for path in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            count += "pidfd" in str(path.readlink())
    return count


def test_supervisor_records_a_program_that_does_not_exist(runs: Runs) -> None:
    run = runs.create()
    lock = run.acquire_lock()
    start_supervisor(run, lock, Command(argv=["/no/such/program"], environment={}), launcher.Record())
    os.close(lock)
    state = wait_for_phase(run, "failed")
    assert state.cause is not None and "/no/such/program" in state.cause


def test_stop_saves_and_ends_with_75(runs: Runs) -> None:
    run = runs.start("until-stopped")
    wait_for_phase(run, "running")
    wait_for(lambda: (run.path / "worker.pid").exists())
    state = stop(run, wait=True)
    assert (state.phase, state.exit_code, state.cause) == ("stopped", 75, "saved")
    assert list(run.requests()) == [], "the request was not removed when served"


def test_sigterm_to_the_supervisor_is_a_stop_request(runs: Runs) -> None:
    run = runs.start("until-stopped")
    wait_for(lambda: (run.path / "worker.pid").exists())
    wait_for_phase(run, "running")
    assert send(supervisor_of(run), signal.SIGTERM)
    state = wait_for_phase(run, "stopped")
    assert state.exit_code == 75


def test_a_run_whose_control_is_a_link_in_a_circle_goes_on_stops_and_is_resumed(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STACKLLAMA_TERM_GRACE", "30")
    run = runs.start("until-stopped")
    wait_for((run.path / "worker.pid").exists)
    shutil.rmtree(run.control)
    run.control.symlink_to(run.control)
    wait_for_phase(run, "running")
    with pytest.raises(RefusedError, match=f"The request to {run.id} could not be written: "):
        ask(run, "save")
    state = stop(run, wait=True)
    assert (state.phase, state.exit_code, state.cause) == ("stopped", 75, "saved")
    wait_for(lambda: not run.lock_is_held())
    runs.again(run, "finish")
    wait_for_phase(run, "finished")


def test_worker_without_handler_ends_by_sigterm_after_the_grace(runs: Runs) -> None:
    run = runs.start("deaf")
    wait_for_phase(run, "running")
    begun = time.monotonic()
    run.request("stop")
    wait_for_phase(run, "stopping")
    state = wait_for_phase(run, "stopped")
    assert time.monotonic() - begun >= 0.5
    assert state.exit_code == 143
    assert state.cause is not None and "SIGTERM" in state.cause and "0.5 s" in state.cause


def test_worker_that_ignores_sigterm_is_killed_with_all_its_processes(runs: Runs) -> None:
    run = runs.start("stubborn")
    wait_for(lambda: (run.path / "orphan.pid").exists())
    state = stop(run, wait=True)
    assert (state.phase, state.exit_code) == ("stopped", 137)
    assert run_processes(run.path) == []


@pytest.mark.parametrize(("mode", "phase"), [("orphan", "finished"), ("orphan-crash", "failed")])
def test_orphan_in_its_own_session_is_ended(runs: Runs, mode: str, phase: str) -> None:
    run, state = runs.end(mode)
    assert state.phase == phase
    assert identify(int((run.path / "orphan.pid").read_text())) is None
    assert run_processes(run.path) == []


def test_a_process_without_the_mark_is_ended_as_well(runs: Runs) -> None:
    run, state = runs.end("unmarked")
    assert state.phase == "finished"
    assert identify(int((run.path / "orphan.pid").read_text())) is None


@pytest.mark.slow
def test_a_grace_is_longer_than_the_saves_of_this_run(runs: Runs) -> None:
    """Its first save took longer than all patience, as its events say."""
    run = runs.start("slow-to-save")
    wait_for(lambda: (run.path / "worker.pid").exists())
    state = stop(run, wait=True)
    assert (state.phase, state.exit_code, state.cause) == ("stopped", 75, "saved")


def test_sigterm_to_the_wrapper_lets_its_orphaned_worker_save(runs: Runs) -> None:
    """SIGTERM ends the real `accelerate launch` at once, too, which leaves its worker alone."""
    run = runs.start("wrapper")
    wait_for(lambda: (run.path / "worker.pid").exists())
    wrapper = run.read_state().worker
    assert wrapper is not None and send(wrapper, signal.SIGTERM)
    state = wait_for_phase(run, "stopped")
    assert (state.exit_code, state.cause) == (75, "saved")
    assert run_processes(run.path) == []


def test_the_cause_names_the_signal_that_came_from_outside(runs: Runs) -> None:
    run = runs.start("silent-wrapper")
    wait_for(lambda: (run.path / "worker.pid").exists())
    wrapper = run.read_state().worker
    assert wrapper is not None and send(wrapper, signal.SIGTERM)
    state = wait_for_phase(run, "stopped")
    assert state.cause == "`accelerate launch` received SIGTERM; its workers stopped. " + (
        "There is no checkpoint yet: resuming starts from step 0."
    )


def test_a_merge_that_a_signal_cut_off_has_saved_nothing(runs: Runs) -> None:
    run = runs.home.create(Stage.MERGE, "# stage: merge\n", "m")
    runs.again(run, "silent-wrapper")
    wait_for(lambda: (run.path / "worker.pid").exists())
    wrapper = run.read_state().worker
    assert wrapper is not None and send(wrapper, signal.SIGTERM)
    state = wait_for_phase(run, "stopped")
    assert state.cause == (
        "`accelerate launch` received SIGTERM; its workers stopped. "
        "A merge saves no checkpoints: resuming starts it again."
    )


def test_worker_that_hangs_after_its_end_event_is_ended(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACKLLAMA_LINGER", "0.3")
    run, state = runs.end("hang-after-end")
    assert (state.phase, state.exit_code) == ("finished", 0)
    assert run_processes(run.path) == []


def test_lock_is_held_exactly_as_long_as_the_supervisor_lives(runs: Runs) -> None:
    run = runs.start("until-stopped")
    assert run.lock_is_held(), "a gap between launcher and supervisor"
    wait_for_phase(run, "running")
    with pytest.raises(RefusedError, match="alive"):
        run.acquire_lock()
    send(supervisor_of(run), signal.SIGKILL)
    wait_for(lambda: not run.lock_is_held())
    assert run_processes(run.path) != [], "the worker must not hold the lock, and was not killed with its supervisor"


def test_supervisor_killed_is_lost_without_survivors(runs: Runs) -> None:
    run = runs.start("stubborn")
    wait_for(lambda: (run.path / "orphan.pid").exists())
    supervisor = supervisor_of(run)
    send(supervisor, signal.SIGKILL)
    wait_for(lambda: not alive(supervisor))
    state = reconcile(run)
    assert state.phase == run.read_state().phase == "lost"
    assert state.cause is not None and "supervisor" in state.cause and "2 of its processes" in state.cause
    assert run_processes(run.path) == []
    assert reconcile(run) == state


def test_supervisor_killed_but_the_worker_said_how_it_ended(runs: Runs) -> None:
    run = runs.start("until-stopped")
    wait_for(lambda: (run.path / "worker.pid").exists())
    send(supervisor_of(run), signal.SIGKILL)
    run.request("stop")
    wait_for(lambda: run_processes(run.path) == [])
    state = reconcile(run)
    assert (state.phase, state.exit_code) == ("stopped", 75)


def test_concurrent_reconciles_agree(runs: Runs) -> None:
    run = runs.start("until-stopped")
    wait_for_phase(run, "running")
    send(supervisor_of(run), signal.SIGKILL)
    wait_for(lambda: not run.lock_is_held())
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if reconcile(RunDir(run.path)).phase in ("lost", "running") else 1)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0, 0]
    assert reconcile(run).phase == "lost"


def test_a_queued_run_of_a_dead_launcher_is_lost(runs: Runs) -> None:
    run = runs.create()
    assert reconcile(run).phase == "queued", "the launcher may still be on its way"
    state = run.read_state()
    assert state.host is not None
    run.write_state(msgspec.structs.replace(state, created=time.time() - 60))  # a changed wall clock proves nothing
    assert reconcile(run).phase == "queued"
    then = msgspec.structs.replace(state.host, clock=state.host.clock - 60)
    run.write_state(msgspec.structs.replace(state, created=time.time() + 3600, host=then))  # an hour back, since
    assert reconcile(run).phase == "lost"


def test_marked_processes_of_other_runs_are_left_alone(runs: Runs) -> None:
    first, second = runs.start("until-stopped", "same"), runs.start("until-stopped", "same-again")
    for run in (first, second):
        wait_for(lambda run=run: (run.path / "worker.pid").exists())
        wait_for_phase(run, "running")
    stop(first, wait=True)
    assert run_processes(first.path) == []
    assert second.read_state().phase == "running" and len(run_processes(second.path)) == 1


def test_full_disk_delays_the_record_and_loses_nothing(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor's own writes fail until there is room; the worker continues, the outcome is recorded late."""
    run = runs.create()
    lock = run.acquire_lock()
    monkeypatch.setattr(launcher, "_spawn", lambda *_: 0)
    start_supervisor(run, lock, fake_command(run.path, "fail"), launcher.Record())
    room = run.path / "room"
    write_state = RunDir.write_state

    def write(self: RunDir, state: State) -> None:
        if not room.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        write_state(self, state)

    monkeypatch.setattr(RunDir, "write_state", write)
    supervisor = os.fork()
    if supervisor == 0:
        Supervisor(run, 1, Patience()).supervise()
        os._exit(0)
    os.close(lock)
    wait_for(lambda: newest_end_event(run, 1) is not None)
    time.sleep(0.5)
    assert run.read_state().phase == "starting" and os.waitpid(supervisor, os.WNOHANG) == (0, 0)
    room.touch()
    assert os.waitpid(supervisor, 0)[1] == 0
    state = run.read_state()
    assert (state.phase, state.exit_code, state.cause) == ("failed", 1, "out of memory in train")


def test_a_failing_watch_does_not_end_the_run(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk limit is not a number, so that the watch fails at its first poll; the run still ends normally."""
    monkeypatch.setenv("STACKLLAMA_DISK_CRITICAL", "a lot")
    run = runs.start("until-stopped")
    wait_for(lambda: (run.path / "worker.pid").exists())
    log = run.attempt_dir(1) / "supervisor.txt"
    wait_for(lambda: "no longer monitored" in log.read_text())
    assert stop(run, wait=True).exit_code == 75


def test_error_of_the_supervisor_itself_is_recorded(runs: Runs) -> None:
    run = runs.create()
    lock = run.acquire_lock()
    try:
        (run.path / "launch.json").mkdir()  # what it must read cannot be read
        with pytest.raises(IsADirectoryError):
            start_supervisor(run, lock, fake_command(run.path, "finish"), launcher.Record())
        run.attempt_dir(1).mkdir()
        assert launcher._spawn(run.path, 1, lock, run.attempt_dir(1) / "supervisor.txt") == 0
    finally:
        os.close(lock)
    wait_for(lambda: not run.lock_is_held())
    state = run.read_state()
    assert state.phase == "failed" and state.cause is not None and "The supervisor itself failed" in state.cause
    assert "Traceback" in (run.attempt_dir(1) / "supervisor.txt").read_text()


def test_shutdown_grace_ignores_a_changed_clock(runs: Runs) -> None:
    """What a save takes decides how long a stop may take; an hour forward between two events is none."""
    run = runs.create()
    folder = run.attempt_dir(1)
    folder.mkdir()
    supervisor = Supervisor(run, 1, Patience(stop=0.5))
    events = EventWriter(folder / "events.jsonl")
    events.write("progress", step=1)
    supervisor._read_events()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda now=time.time: now() + 3600)
        events.write("checkpoint", step=1)
    supervisor._read_events()
    assert supervisor._shutdown.grace(0.5) < 900
    events.close()
