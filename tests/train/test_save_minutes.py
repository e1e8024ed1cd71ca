"""A power cut long before the next checkpoint by steps costs minutes: the clock asked for one (`save_minutes`)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stackllama_engine.contract import requests
from stackllama_engine.contract.checkpoints import read_manifest, sealed
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import checkpoint, save_timer
from stackllama_engine.train.reporting import Reporter
from stackllama_engine.train.save_timer import SaveTimer

from .in_process import PPO, Attempt, attempt
from .toy import COMMON, REWARD, SFT, run_stage

pytestmark = pytest.mark.slow

SMALL = (*COMMON, "max_train_samples=16", "max_eval_samples=2", "max_steps=4", "eval_steps=0", "lora_dropout=0.1")
KEYS = {
    Stage.SFT: (*SFT, *SMALL, "per_device_train_batch_size=2", "packing=false"),
    Stage.REWARD: (*REWARD, *SMALL, "per_device_train_batch_size=2"),
    Stage.PPO: (*PPO, "max_steps=3"),
}
BY_TIME_ALONE = ("save_steps=500", "save_minutes=15")


class PowerCut(BaseException):
    """Nothing that is done about an error is done."""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def cut_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let the power fail as a step ends, before anything can be saved there."""
    progress = Reporter.progress

    def cut(self: Reporter, done: int, total: int) -> None:
        progress(self, done, total)
        if done == step:
            raise PowerCut

    patch.setattr(Reporter, "progress", cut)


def due_after(patch: pytest.MonkeyPatch, *steps: int) -> None:
    """Let the minutes be over as these steps end."""
    patch.setattr(SaveTimer, "due", lambda self, step: step in steps)


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    return {
        f"{file.relative_to(run.adapter)}.{name}": tensor
        for file in sorted(run.adapter.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def saved(one: Attempt) -> list[int]:
    return [checkpoint.step_of(path) for path in sealed(one.run.checkpoints)]


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.PPO])
def test_the_first_minutes_bring_a_checkpoint_and_what_one_costs(
    stage: Stage, home: Home, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(save_timer, "FIRST_SECONDS", 0.0)
    keys = (*KEYS[stage], *BY_TIME_ALONE, "max_steps=2", "metric_for_best_model=eval_loss")
    with attempt(home, base, stage, *keys) as one, monkeypatch.context() as patch:
        cut_at(patch, 2)
        with pytest.raises(PowerCut):
            one.train()
    assert saved(one) == [1]
    manifest = read_manifest(one.run.checkpoints / "step-000001")
    assert manifest.by_time
    (cost,) = [line for line in one.health.splitlines() if line.startswith("a checkpoint takes ")]
    sizes = (f"{manifest.size / 1024:.0f} KiB", f"{manifest.size / 1024**2:.0f} MiB")
    assert any(f" s and {size}: " in cost for size in sizes), cost
    assert cost.endswith(" % of the time at one every 15 minutes"), cost
    assert one.served == [], "nobody asked"
    assert "was measured at step" not in one.health, "that nothing was is the clock's doing"


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        (Stage.PPO, 1),
        pytest.param(Stage.PPO, 2, marks=pytest.mark.long),
        *(
            pytest.param(stage, step, marks=pytest.mark.long)
            for stage in (Stage.SFT, Stage.REWARD)
            for step in (1, 2, 3)
        ),
    ],
)
def test_resumed_from_wherever_the_clock_saved_equals_straight(
    stage: Stage, step: int, home: Home, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (*KEYS[stage], *BY_TIME_ALONE)
    last = 3 if stage is Stage.PPO else 4
    with attempt(home, base, stage, *keys) as straight:
        assert straight.train() is not None
    with attempt(home, base, stage, *keys) as first, monkeypatch.context() as patch:
        due_after(patch, step)
        cut_at(patch, last)
        with pytest.raises(PowerCut):
            first.train()
    assert saved(first) == [step]
    with attempt(home, base, stage, *keys, of=first.run) as second:
        assert second.train() is not None
    assert f"resuming from step-{step:06d}" in second.health
    expected, found = weights(straight.run), weights(second.run)
    assert expected and found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("stage", [Stage.SFT, pytest.param(Stage.REWARD, marks=pytest.mark.long)])
def test_what_is_logged_next_is_as_if_nothing_had_happened(
    stage: Stage, home: Home, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log speaks of the steps since the one before, and the clock saves between two."""
    keys = (*KEYS[stage], *BY_TIME_ALONE, "logging_steps=3", "max_steps=6", "max_train_samples=32")
    with attempt(home, base, stage, *keys) as straight:
        assert straight.train() is not None
    with attempt(home, base, stage, *keys) as first, monkeypatch.context() as patch:
        due_after(patch, 5)
        cut_at(patch, 6)
        with pytest.raises(PowerCut):
            first.train()
    with attempt(home, base, stage, *keys, of=first.run) as second:
        assert second.train() is not None
    for name, tensor in weights(straight.run).items():
        assert torch.equal(weights(second.run)[name], tensor), name
    names = {name for event in straight.events for name in event.metrics if not name.startswith(("eval_", "time/"))}
    names -= {"tokens_per_second", "allocated", "device", "reserved", "rss"}  # of clocks and machines
    assert {"loss", "num_tokens"} <= names
    for name in names:
        assert second.metrics(name).get(6) == straight.metrics(name).get(6), name


@pytest.mark.long
def test_saving_by_the_clock_changes_nothing_that_is_trained(
    home: Home, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (*KEYS[Stage.SFT], "save_steps=2", "save_minutes=15")
    with attempt(home, base, Stage.SFT, *keys) as plain:
        plain.train()
    with attempt(home, base, Stage.SFT, *keys) as timed, monkeypatch.context() as patch:
        due_after(patch, 1, 2, 3)
        timed.train()
    assert (saved(plain), saved(timed)) == ([2, 4], [2, 3, 4]), "`save_total_limit` counts every one alike"
    marks = [read_manifest(path).by_time for path in sealed(timed.run.checkpoints)]
    assert marks == [False, True, False], "one that the steps ask for as well is the steps'"
    for name, tensor in weights(plain.run).items():
        assert torch.equal(weights(timed.run)[name], tensor), name


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.PPO])
def test_a_pause_is_no_reason_not_to_save_and_none_to_save_twice(
    stage: Stage, home: Home, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = ["", "", "continue"]
    with attempt(home, base, stage, *KEYS[stage], *BY_TIME_ALONE, "max_steps=2") as one:
        requests.write(one.run, "pause")

        def wait(_: float) -> None:
            assert one.phases[-1] == "paused", "a save ends no pause"
            monkeypatch.setattr(save_timer, "FIRST_SECONDS", 0.0)
            if timer := one.session.requests.timer:
                timer._wait = 0.0  # as if the minutes were over, again and again
            if what := turns.pop(0):
                requests.write(one.run, what)  # type: ignore[arg-type]

        monkeypatch.setattr("stackllama_engine.train.serving.time.sleep", wait)
        one.train()
    made = [event.step for event in one.events if event.kind == "checkpoint"]
    assert made[0] == 1 and made.count(1) == 1, made
    assert [data["request"] for data in one.served] == ["pause", "continue"]


@pytest.mark.long
def test_all_ranks_save_when_the_clock_of_the_first_says_so(home: Home, base: Path) -> None:
    keys = (*SFT, "max_steps=3", "save_steps=0", "save_minutes=0.0001", "num_processes=2", "max_train_samples=32")
    run = run_stage(home, Stage.SFT, f"model_name_or_path={base}", *keys)
    first = sealed(run.checkpoints)[0]
    assert read_manifest(first).by_time and checkpoint.problem(first) is None
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in first.iterdir()}
