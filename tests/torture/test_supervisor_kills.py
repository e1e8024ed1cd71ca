"""Cases 3 and 4, and racing launches: whatever is killed, nothing is lost, left over or done twice."""

import os
import signal
import time
from pathlib import Path

import pytest
from tests.launch.conftest import fake_command, wait_for, wait_for_phase

from stackllama_engine.contract.errors import RefusedError
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.run_dir import Home, ProcessId, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher
from stackllama_engine.launch.processes import identify, kill_run_processes, run_processes, send
from stackllama_engine.launch.reconcile import reconcile

from .conftest import FULL, Counted, Runs

pytestmark = pytest.mark.slow

_LAUNCHERS = 3


def kill_supervisor(run: RunDir) -> None:
    """Kill it, found by its command line: it may not have recorded itself yet, nor detached."""
    wanted = [b"stackllama_engine.launch.supervisor", str(run.path).encode()]
    killed: list[ProcessId] = []

    def none_is_left() -> bool:
        supervisors: list[ProcessId] = []
        for entry in Path("/proc").iterdir():
            try:
                process = identify(int(entry.name)) if entry.name.isdigit() else None
                arguments = (entry / "cmdline").read_bytes().split(b"\0") if process else []
            except (FileNotFoundError, ProcessLookupError):
                continue
            if process and all(one in arguments for one in wanted):
                supervisors.append(process)
        killed.extend(process for process in supervisors if send(process, signal.SIGKILL))
        return bool(killed) and not supervisors

    wait_for(none_is_left)


def test_a_supervisor_killed_at_any_moment_is_a_lost_run_without_survivors(runs: Runs, counted: Counted) -> None:
    def trial(number: int) -> None:
        run = runs.start(counted.chance.choice(["until-stopped", "stubborn", "wrapper", "deaf"]), f"killed-{number}")
        time.sleep(counted.chance.uniform(0.0, 0.6))
        kill_supervisor(run)
        killed_at = time.monotonic()
        wait_for(lambda: reconcile(run).phase == "lost")
        if FULL:
            assert time.monotonic() - killed_at < 1.0, "not within a second of the next command"
        for _ in range(5):  # one listing is no proof
            assert run_processes(run.path) == []
            time.sleep(0.01)
        assert reconcile(run).phase == run.read_state().phase == "lost" and not run.lock_is_held()

    counted.run(3, "supervisor killed", trial, few=4, all_of_them=200)


def test_a_launcher_that_is_terminated_leaves_no_orphan_and_its_signal_is_recorded(
    runs: Runs, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STACKLLAMA_TERM_GRACE", "20")

    def trial(number: int) -> None:
        run = runs.start("silent-wrapper", f"terminated-{number}")
        wait_for(lambda: (run.path / "worker.pid").exists())
        time.sleep(counted.chance.uniform(0.0, 0.2))
        launched = run.read_state().worker
        sent = counted.chance.choice([signal.SIGTERM, signal.SIGUSR1])  # SIGHUP is ignored, as by nohup
        assert launched is not None and send(launched, sent)
        state = wait_for_phase(run, "stopped")
        assert (state.exit_code, sent.name in (state.cause or "")) == (75, True)
        assert run_processes(run.path) == []

    counted.run(4, "launcher of one process terminated", trial, few=1, all_of_them=30)


def test_of_racing_launches_exactly_one_wins(runs: Runs, counted: Counted, home: Home) -> None:
    recipe = build_recipe(Stage.SFT, {"model_name_or_path": "gpt2", "use_cpu": True})

    def race(name: str) -> int:
        launcher.build_command = lambda _recipe, run_dir, _gpus: fake_command(run_dir, "until-stopped")
        try:
            launcher.launch(launcher.plan(home, recipe, name))
        except RefusedError:
            return 3
        return 0

    def trial(number: int) -> None:
        name = f"raced-{number}"
        reader, writer = os.pipe()
        pids: list[int] = []
        for _ in range(_LAUNCHERS):
            if (pid := os.fork()) == 0:
                try:
                    os.close(writer)
                    os.read(reader, 1)  # all at once, when the last end of the pipe is closed
                    os._exit(race(name))
                finally:
                    os._exit(9)
            pids.append(pid)
        os.close(reader)
        os.close(writer)
        codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
        assert codes == [0] + [3] * (_LAUNCHERS - 1)
        run = home.run(name)
        wait_for(lambda: (run.path / "worker.pid").exists())
        assert len(run_processes(run.path)) == 1 and len(run.attempt_dirs()) == 1
        kill_supervisor(run)
        kill_run_processes(run.path)

    counted.run(2, "three launches of one name at once", trial, few=2, all_of_them=100)


@pytest.mark.torture
def test_sigterm_to_a_real_launcher_of_two_ranks(runs: Runs, counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.launch.test_ranks import signal_the_launcher, start_ranks

    monkeypatch.setenv("STACKLLAMA_TERM_GRACE", "20")

    def trial(number: int) -> None:
        signal_the_launcher(start_ranks(runs, 2), [signal.SIGTERM, signal.SIGUSR1][number % 2])

    counted.run(4, "`accelerate launch` of two ranks terminated (SIGTERM, SIGUSR1)", trial, few=0, all_of_them=6)


@pytest.mark.torture
def test_a_rank_stopped_again_and_again(runs: Runs, counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.launch.test_ranks import start_ranks, steps

    monkeypatch.setenv("STACKLLAMA_STALL_FLOOR", "1")
    run = start_ranks(runs, 2)

    def trial(number: int) -> None:
        process = identify(int((run.path / f"rank-{number % 2}.pid").read_text()))
        assert process is not None and send(process, signal.SIGSTOP)
        try:
            assert not wait_for_phase(run, "stalled").has_ended
        finally:
            send(process, signal.SIGCONT)
        before = steps(run)
        wait_for_phase(run, "running")
        wait_for(lambda: steps(run) > before)

    counted.run(5, "one rank of two stopped and released", trial, few=0, all_of_them=20)
