"""NVML that hangs forever, from its first call on or later: a stop works as without it, and is recorded."""

import time
from pathlib import Path

import pytest
from tests.launch.conftest import wait_for, wait_for_phase
from tests.launch.hanging_nvml import CALLS, install

from stackllama_engine.launch.processes import run_processes

from .conftest import FULL, Counted, Runs

pytestmark = pytest.mark.slow

_STARTED = {"until-stopped": "worker.pid", "stubborn": "orphan.pid"}
_MOST_CALLS = 60  # the first poll makes a dozen, each later one half of that
_SECONDS = 10.0  # graces of half a second each, a second for every caller of NVML, and a loaded machine


def test_a_stop_works_while_the_driver_hangs(
    runs: Runs, counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in install(tmp_path / "nvml").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("STACKLLAMA_STALL_LOAD", "4")  # polls every 0.2 s
    hung: list[bool] = []

    def trial(number: int) -> None:
        monkeypatch.setenv(CALLS, str(counted.chance.randrange(_MOST_CALLS)))
        mode = counted.chance.choice(sorted(_STARTED))
        run = runs.start(mode, f"hung-{number}")
        wait_for(lambda: (run.path / _STARTED[mode]).exists(), 60)
        time.sleep(counted.chance.uniform(0.0, 2.0))
        supervisor = run.read_state().supervisor
        reached = tmp_path / "nvml" / "reached"
        hung.append(supervisor is not None and reached.exists() and str(supervisor.pid) in reached.read_text().split())
        requested = time.monotonic()
        run.request("stop")
        state = wait_for_phase(run, "stopped")
        assert state.exit_code == (75 if mode == "until-stopped" else 137), state
        assert run_processes(run.path) == []
        wait_for(lambda: not run.lock_is_held())
        if FULL:
            assert time.monotonic() - requested < _SECONDS

    counted.run(18, "stop while NVML hangs", trial, few=1, all_of_them=20)
    print(f"it hung before the stop in {sum(hung)} of {len(hung)}")
