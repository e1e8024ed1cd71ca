"""Runs of other machines and of Slurm on the screens: said where they are, and never started beside themselves."""

import os
import time
from pathlib import Path

import msgspec
import pytest
from tests.tui.app_kit import Shown, run_app
from tests.tui.screens_kit import Driven, drive, isolate, make_run

from stackllama_console.settings import Settings
from stackllama_console.tui.screens.launch import LaunchScreen
from stackllama_engine.contract.host import Host
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """Make a run on another machine, silent for five minutes; its lock is free as seen from here."""
    run = make_run(isolate(tmp_path, monkeypatch), Stage.SFT, "far", phase="running")
    run.write_state(msgspec.structs.replace(run.read_state(), host=Host(name="gpu17", boot_id="another-boot")))
    then = time.time() - 310
    os.utime(run.path / "state.json", (then, then))
    return run


def home_of(run: RunDir) -> Home:
    return Home(run.path.parents[1])


def test_the_list_says_where_a_run_is_and_leaves_it_alone(run: RunDir) -> None:
    before = (run.path / "state.json").read_bytes()

    async def script(shown: Shown) -> None:
        await shown.shows(
            "● running", "on gpu17, last sign 5 minutes ago", "running on gpu17, last sign 5 minutes ago: from here"
        )
        await shown.press("r")
        await shown.notified("`far` is alive on gpu17", "runs resume far --host-gone gpu17")

    run_app(home_of(run), script, size=(120, 30))
    assert (run.path / "state.json").read_bytes() == before


def test_monitor_names_the_host_and_requests_a_stop(run: RunDir) -> None:
    async def script(shown: Shown) -> None:
        await shown.reaches("MonitorScreen")
        await shown.shows("● running", "it is on gpu17, last sign 5 minutes ago")
        await shown.press("x", "y")
        await shown.notified("far: asked to save and stop")

    run_app(home_of(run), script, target="far")
    assert list(run.requests()) == ["stop"]


def test_a_copy_of_a_slurm_run_is_not_launched_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = isolate(tmp_path, monkeypatch)
    queued = make_run(home, Stage.SFT, "queued", phase="stopped")
    queued.write_json("slurm.json", {"id": "42", "submitted": 1.0, "options": {"time": "8:00:00"}})

    async def script(driven: Driven) -> None:
        await driven.shows("cloned from queued")
        await driven.press("enter")
        await driven.shows("a Slurm run: launched here", "--slurm --sbatch-option=time=8:00:00")
        assert driven.app.screen is driven.screen

    drive(home, lambda: LaunchScreen(home, Settings(), clone="queued"), script, size=(160, 45))
    assert [run.id for run in home.runs()] == ["queued"]
