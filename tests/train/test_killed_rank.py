"""A rank killed through the real command is named, with host, signal and memory, whoever else complains."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home, ProcessId, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.launcher import launch
from stackllama_engine.launch.main_memory import cgroups
from stackllama_engine.launch.processes import arguments, environment_value, run_processes, send

from .in_process import PPO, REWARDS
from .toy import SFT, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.long]

LENGTH = "def length(*, questions, responses):\n    return [1.0] * len(responses)\n"
HOG = """
import os, sys, time
if "stackllama_engine.train" in sys.orig_argv:
    from stackllama_engine.train.report import Reporter
    progress, held = Reporter.progress, []
    def hungry(self, step, total_steps):
        progress(self, step, total_steps)
        while step >= 2:  # until the kernel has enough of it
            held.append(os.urandom(1 << 20) * 64)
            time.sleep(0.1)
    Reporter.progress = hungry
"""


def keys(stage: Stage, base: Path, site: Path, processes: int) -> tuple[str, ...]:
    (site / f"{REWARDS}.py").write_text(LENGTH)
    own = {Stage.SFT: (*SFT, "save_steps=0"), Stage.PPO: (*PPO, f"reward_fn_path={site}")}[stage]
    return (f"model_name_or_path={base}", *own, "max_steps=100000", f"num_processes={processes}")


def trains(run: RunDir) -> bool:
    events = run.attempt_dir(1) / "events.jsonl"
    return events.is_file() and events.read_bytes().count(b'"progress"') > 1


def rank_process(run: RunDir, rank: str | None) -> ProcessId:
    """The process that trains, of several the one of that rank."""
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
    run = launch(Home(tmp_path / "home"), stage, recipe)
    wait_for(run, lambda state: state.has_ended or trains(run))
    assert send(rank_process(run, rank), signal.SIGKILL)
    state = wait_for(run, lambda state: state.has_ended)
    assert (state.phase, state.exit_code) == ("failed", 137), state
    cause = state.cause or ""
    who = f"rank {rank}" if rank else "the worker"
    assert cause.startswith(f"{who} on {socket.gethostname()} was killed by SIGKILL in phase "), cause
    assert "the run held " in cause.lower(), cause
    assert run_processes(run.path) == []


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A cgroup, unlimited itself, in one of 2 GiB without swap."""
    if os.getuid() != 0:
        pytest.skip("making a control group takes root")
    chain = cgroups()
    if not chain:
        pytest.skip("no control group accounts for memory here")
    top = [cgroup for cgroup in chain if cgroup.version == chain[0].version][-1]
    outer = top.folder / f"killed-rank-{os.getpid()}"
    try:
        outer.mkdir()
        limit = "memory.max" if top.version == 2 else "memory.limit_in_bytes"
        (outer / limit).write_text(str(2 << 30))
        if top.version == 2:
            (outer / "cgroup.subtree_control").write_text("+memory")
            (outer / "memory.swap.max").write_text("0")
        (outer / "inner").mkdir()
    except OSError as error:
        if outer.is_dir():
            outer.rmdir()
        pytest.skip(f"no control group with a memory limit can be made here: {error}")
    yield outer / "inner"
    deadline = time.monotonic() + 60
    while (outer / "inner" / "cgroup.procs").read_text() and time.monotonic() < deadline:
        time.sleep(0.1)  # the supervisor is about to end
    for folder in (outer / "inner", outer):
        folder.rmdir()


def test_the_kernels_killer_is_named_with_the_limit_of_the_cgroup_above(
    small_cgroup: Path, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HOG)
    home = Home(tmp_path / "home")
    command = [
        sys.executable, "-m", "stackllama_console", "--home", str(home.path), "launch", "sft",
        *keys(Stage.SFT, base, tmp_path, 1),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    script = f'echo $$ > {small_cgroup}/cgroup.procs && exec "$@"'
    started = subprocess.run(["sh", "-c", script, "sh", *command], env=environment, capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    (run,) = home.runs()
    state = wait_for(run, ended)
    cause = state.cause or ""
    assert (state.phase, state.exit_code) == ("failed", 137), state
    assert cause.startswith(f"the worker on {socket.gethostname()} was killed by SIGKILL in phase train"), cause
    assert " by the kernel's out-of-memory killer: the run held " in cause, cause
    assert " of 2.0 GiB (memory." in cause and f"{small_cgroup.parent.name})" in cause, cause


def ended(state: State) -> bool:
    return state.has_ended
