"""Case 10: the disk of a running stage fills at a random moment, and is freed later or never."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.full_disk import MIB, SmallDisk, small_disk
from tests.train.conftest import base, one_thread, shared_home
from tests.train.in_process import finish
from tests.train.test_full_disk import KEYS, assert_same_weights
from tests.train.toy import wait_for

from stackllama_engine.contract.events import Event, EventReader
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.launcher import launch, plan, resume
from stackllama_engine.launch.reconcile import reconcile
from stackllama_engine.launch.run_requests import stop
from stackllama_engine.train import checkpoint

from .conftest import Counted

__all__ = ["base", "one_thread", "shared_home"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

_STEPS = 20
_MORE = (f"max_steps={_STEPS}", "save_steps=4", "logging_steps=1")


def metrics(run: RunDir) -> dict[tuple[int | None, str], float | None]:
    """Collect the metrics of each step over all attempts, without times; a repeated step must have the same ones."""
    values: dict[tuple[int | None, str], float | None] = {}
    for event in events(run):
        for name, value in event.metrics.items() if event.kind == "metrics" else ():
            if not name.startswith("time/") and not name.endswith("_per_second"):
                assert values.setdefault((event.step, name), value) == value, (event.step, name)
    return values


def events(run: RunDir) -> list[Event]:
    return [event for path in run.events_files() for event in EventReader(path).read()]


def trained(run: RunDir) -> bool:
    """Return whether it has completed a step: before that, a full disk costs nothing."""
    return any(event.kind == "progress" for event in events(run))


class Trials:
    """Trials, each on a disk of its own."""

    def __init__(self, folder: Path, base: Path, shared_home: Home, counted: Counted) -> None:
        self._folder = folder
        self._base = base
        self._home = shared_home
        self._chance = counted.chance
        self._straight: dict[Stage, RunDir] = {}

    def __call__(self, number: int) -> None:
        stage = self._chance.choice([Stage.SFT, Stage.PPO])
        wanted = self._undisturbed(stage)
        with small_disk(self._folder / str(number), 96 * MIB, inodes=4000) as disk:
            home = Home(disk.path / "home")
            given = (f"reward_func_paths=[{self._base.parent / 'rewards'}]",) if stage is Stage.PPO else ()
            keys = (f"model_name_or_path={self._base}", *KEYS[stage], *_MORE, *given)
            run = launch(plan(home, load_recipe(stage, None, keys)))
            try:
                self._disturb(run, disk)
                state = wait_for(run, lambda state: state.has_ended)
                if state.phase != "finished":
                    assert_saved(run, state)
                    disk.clear()
                    resume(home, run.id)
                    state = wait_for(run, lambda state: state.has_ended)
                assert (state.phase, state.exit_code) == ("finished", 0), state.cause
                assert_same_weights(run, wanted)
                assert metrics(run) == metrics(wanted)
            finally:
                disk.clear()
                stop(run, wait=True)

    def _undisturbed(self, stage: Stage) -> RunDir:
        if stage not in self._straight:
            self._straight[stage], _ = finish(self._home, self._base, stage, *KEYS[stage], *_MORE)
        return self._straight[stage]

    def _disturb(self, run: RunDir, disk: SmallDisk) -> None:
        wait_for(run, lambda state: trained(run) or state.has_ended)
        time.sleep(self._chance.uniform(0.0, 0.8))
        fill: Callable[[], None] = disk.take_inodes
        if self._chance.random() < 0.8:
            leave = self._chance.choice([0, 0, self._chance.randrange(600_000)])
            fill = lambda: disk.fill(leave=leave)  # noqa: E731
        fill()
        if self._chance.random() < 0.5:
            time.sleep(self._chance.uniform(0.0, 2.0))
            disk.clear()


def assert_saved(run: RunDir, state: State) -> None:
    """Assert that it stopped with a checkpoint of its last step, and that the cause names the disk."""
    assert (state.phase, state.exit_code) == ("stopped", 75), state.cause
    assert state.cause is not None and state.cause.startswith("The disk is full"), state.cause
    found, skipped = checkpoint.newest(run.checkpoints)
    done = max(event.step or 0 for event in events(run) if event.kind == "progress")
    assert found is not None and checkpoint.step_of(found) == done and skipped == []
    assert reconcile(run).phase == "stopped"


def test_a_disk_that_fills_at_a_random_moment(
    tmp_path: Path, base: Path, shared_home: Home, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STACKLLAMA_DISK_PATIENCE", "4")
    trials = Trials(tmp_path, base, shared_home, counted)
    counted.run(10, "disk of a stage full at a random moment, freed or not", trials, few=1, all_of_them=50)
