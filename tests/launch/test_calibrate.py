"""Calibration rows: finished runs add one; failed runs, or runs without measurements, do not."""

import os
import signal
from pathlib import Path

import pytest

from stackllama_engine.budget.calibration import FILE, read_rows
from stackllama_engine.contract.base import DEMO_BASE
from stackllama_engine.contract.recipe_io import build_recipe, dump_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher
from stackllama_engine.launch.argv import Command
from stackllama_engine.launch.calibrate import calibration
from stackllama_engine.launch.expected import expected
from stackllama_engine.launch.processes import send
from stackllama_engine.launch.reconcile import reconcile

from .conftest import Runs, fake_command, wait_for, wait_for_phase

CPU = {"ACCELERATE_USE_CPU": "true"}


def trained(home: Home, mode: str, model: str = str(DEMO_BASE), environment: dict[str, str] = CPU) -> RunDir:
    """Run the fake worker until its supervisor has ended."""
    values = {"model_name_or_path": model, "use_cpu": True, "load_in_8bit": False, "num_processes": 1}
    run = home.create(Stage.SFT, dump_recipe(build_recipe(Stage.SFT, values)))
    command = fake_command(run.path, mode)
    lock = run.acquire_lock()
    try:
        given = Command(argv=command.argv, environment=command.environment | environment)
        launcher.start_supervisor(run, lock, given, launcher.Record())
    finally:
        os.close(lock)
    wait_for_phase(run, "finished", "failed")
    wait_for(lambda: not run.lock_is_held())
    return run


def test_a_finished_run_adds_a_row(runs: Runs) -> None:
    run = trained(runs.home, "measured")
    (row,) = read_rows(runs.home.path)
    known = expected(run, Stage.SFT)
    assert known is not None and not known.on_gpu and known.gpus == 1
    assert (row.run, row.kind.stage, row.kind.on_gpu) == (run.id, "sft", False)
    assert row.kind.method == "lora auto no autocast"
    assert (row.measured, row.interval, row.allocated) == (
        700 << 20,
        known.estimate.device,
        known.estimate.allocated,
    )
    assert row.measured_phases == {"train": {"rss": float(600 << 20)}}
    assert row.kind.versions["torch"] and row.kind.machine.endswith(", CPU")
    assert not (run.attempt_dir(1) / "supervisor.txt").exists(), "the supervisor had something to complain about"


def test_later_estimates_use_the_calibration(runs: Runs) -> None:
    assert calibration(runs.home.path) is None
    run = [trained(runs.home, "measured") for _ in range(3)][-1]
    known, asked = calibration(runs.home.path), expected(run, Stage.SFT)
    assert known is not None and asked is not None
    narrowed, told = known.narrow(asked.estimate, asked.recipe, gpus=1, on_gpu=False)
    assert told is not None
    assert narrowed.device[0] <= 700 << 20 <= narrowed.device[1]
    assert narrowed.device[1] - narrowed.device[0] < asked.estimate.device[1] - asked.estimate.device[0]


@pytest.mark.parametrize("mode", ["finish", "fail"])
def test_runs_without_measurement_or_with_failure_add_no_row(runs: Runs, mode: str) -> None:
    trained(runs.home, mode)
    assert not (runs.home.path / FILE).exists()


def test_a_missing_model_adds_no_row_and_logs_nothing(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(runs.home.path / "no-cache"))
    run = trained(runs.home, "measured", model="org/far")
    assert not (runs.home.path / FILE).exists()
    assert not (run.attempt_dir(1) / "supervisor.txt").exists()


def test_a_hub_model_of_the_cache_is_found(runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--near"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abcdef1\n")
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / "abcdef1").symlink_to(DEMO_BASE)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    trained(runs.home, "measured", model="org/near")
    assert len(read_rows(runs.home.path)) == 1


def test_an_unwritable_calibration_file_changes_no_outcome(runs: Runs) -> None:
    (runs.home.path / FILE).mkdir(parents=True)
    run = trained(runs.home, "measured")
    assert run.read_state().phase == "finished"
    assert "could not be added to the calibration" in (run.attempt_dir(1) / "supervisor.txt").read_text()


def test_reconcile_adds_the_row_when_the_supervisor_was_killed(runs: Runs) -> None:
    values = {"model_name_or_path": str(DEMO_BASE), "use_cpu": True, "load_in_8bit": False}
    run = runs.home.create(Stage.SFT, dump_recipe(build_recipe(Stage.SFT, values)))
    lock = run.acquire_lock()
    launcher.start_supervisor(run, lock, fake_command(run.path, "measured-and-hang"), launcher.Record())
    os.close(lock)
    wait_for(lambda: (run.path / "measured").exists())
    wait_for_phase(run, "running")
    supervisor = run.read_state().supervisor
    assert supervisor is not None
    send(supervisor, signal.SIGKILL)
    wait_for(lambda: not run.lock_is_held())
    assert reconcile(run).phase == "finished"
    assert [row.run for row in read_rows(runs.home.path)] == [run.id]
