"""A rank killed through the real command is named, with host, signal and memory, whoever else complains."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from tests.small_cgroup import console_inside, small_cgroup

from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home, ProcessId, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.launcher import launch, plan
from stackllama_engine.launch.processes import arguments, environment_value, run_processes, send

from .in_process import PPO, REWARDS
from .toy import SFT, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.long]

LENGTH = "def length(*, questions, responses):\n    return [1.0] * len(responses)\n"
HOG = """
import os, sys, time
if "stackllama_engine.train" in sys.orig_argv:
    from stackllama_engine.train.reporting import Reporter
    progress, held = Reporter.progress, []
    def hungry(self, step, total_steps):
        progress(self, step, total_steps)
        if step >= 2:
            held.append(os.urandom(1 << 20) * 1024)
            time.sleep(1)  # long enough to be seen
            held.append(os.urandom(1 << 20) * 4096)  # at once: bit by bit, the kernel would drop code before it kills
    Reporter.progress = hungry
"""


def keys(stage: Stage, base: Path, site: Path, processes: int) -> tuple[str, ...]:
    (site / f"{REWARDS}.py").write_text(LENGTH)
    own = {Stage.SFT: (*SFT, "save_steps=0"), Stage.PPO: (*PPO, f"reward_func_paths=[{site}]")}[stage]
    return (f"model_name_or_path={base}", *own, "max_steps=100000", f"num_processes={processes}")


def trains(run: RunDir) -> bool:
    events = run.attempt_dir(1) / "events.jsonl"
    return events.is_file() and events.read_bytes().count(b'"progress"') > 1


def rank_process(run: RunDir, rank: str | None) -> ProcessId:
    """Find the process that trains; of several, the one of that rank."""
    (found,) = [
        process
        for process in run_processes(run.path)
        if arguments(process)[1:3] != ["-m", "stackllama_engine.train.accelerate_cli"]
        and str(run.path) in arguments(process)
        and environment_value(process, "RANK") == rank
    ]
    return found


@pytest.mark.parametrize(
    ("stage", "processes", "rank"),
    [(Stage.SFT, 2, "1"), (Stage.SFT, 2, "0"), (Stage.PPO, 2, "1"), (Stage.SFT, 1, None)],
)
def test_it_is_named(stage: Stage, processes: int, rank: str | None, tmp_path: Path, base: Path) -> None:
    recipe = load_recipe(stage, None, keys(stage, base, tmp_path, processes))
    run = launch(plan(Home(tmp_path / "home"), recipe))
    wait_for(run, lambda state: state.has_ended or trains(run))
    assert send(rank_process(run, rank), signal.SIGKILL)
    state = wait_for(run, lambda state: state.has_ended)
    assert (state.phase, state.exit_code) == ("failed", 137), state
    cause = state.cause or ""
    who = f"rank {rank}" if rank else "the worker"
    assert cause.startswith(f"{who} on {socket.gethostname()} was killed by SIGKILL in phase "), cause
    assert "the run used " in cause.lower(), cause
    assert run_processes(run.path) == []


def test_the_kernels_killer_is_named_with_the_limit_of_the_cgroup_above(tmp_path: Path, base: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HOG)
    home = Home(tmp_path / "home")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    with small_cgroup() as cgroup:
        command = console_inside(cgroup, "--home", str(home.path), "launch", "sft", *keys(Stage.SFT, base, tmp_path, 1))
        started = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert started.returncode == 0, started.stderr
        (run,) = home.runs()
        state = wait_for(run, lambda state: state.has_ended)
    cause = state.cause or ""
    assert (state.phase, state.exit_code) == ("failed", 137), state
    assert cause.startswith(f"the worker on {socket.gethostname()} was killed by SIGKILL in phase train"), cause
    assert " by the kernel's out-of-memory killer: the run used " in cause, cause
    assert "another process held memory" in cause, "a toy's estimate is nothing beside 2 GiB"
    assert " of 2.0 GiB (memory." in cause and f"{cgroup.parent.name})" in cause, cause
