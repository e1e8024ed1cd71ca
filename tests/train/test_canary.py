"""The canary: the worst case once, of which nothing stays; asked for, or by default where PPO runs on a GPU."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import get_scheduler

from stackllama_console.__main__ import main
from stackllama_engine.contract.errors import StageError, UsageError
from stackllama_engine.contract.events import Event, EventReader
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.health.watch import WatchState
from stackllama_engine.launch import launcher
from stackllama_engine.train.ppo import fault_tolerance
from stackllama_engine.train.ppo.losses import KLController
from stackllama_engine.train.ppo.rewards import RewardScaling
from stackllama_engine.train.ppo.state import Evaluations, Trainables

from .in_process import finish
from .toy import PPO

RECIPE = load_recipe(
    Stage.PPO,
    None,
    ["model_name_or_path=demo", "reward_model_path=x", "random_length_limits=[2, 9]", "num_processes=1"],
)


def in_command(recipe: Any, asked: bool | None) -> bool:
    return fault_tolerance.CANARY in launcher._command(recipe, Path("/run"), launcher._gpus(recipe), asked).environment


def test_canary_is_the_default_where_ppo_runs_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "visible_gpus", lambda: ["0"])
    assert in_command(RECIPE, None) and not in_command(RECIPE, False)
    on_cpu = load_recipe(Stage.PPO, None, ["model_name_or_path=demo", "reward_model_path=x", "use_cpu=true"])
    assert not in_command(on_cpu, None) and in_command(on_cpu, True)
    assert not in_command(load_recipe(Stage.SFT, None, ["model_name_or_path=demo"]), None)
    monkeypatch.setattr(launcher, "visible_gpus", list)
    assert not in_command(RECIPE, None)


def test_stages_without_ppo_refuse_a_canary(tmp_path: Path) -> None:
    sft = load_recipe(Stage.SFT, None, ["model_name_or_path=demo"])
    with pytest.raises(UsageError, match="a sft run has none"):
        launcher.launch(launcher.plan(Home(tmp_path), sft, canary=True))
    assert list(Home(tmp_path).runs()) == []


def test_canary_responses_are_as_long_as_allowed() -> None:
    noise = fault_tolerance.canary_noise(RECIPE)  # type: ignore[arg-type]
    assert len(noise) == RECIPE.local_batch_size  # type: ignore[union-attr]
    assert {one.length for one in noise} == {8} == {len(one.uniforms) for one in noise}


class Kept(Trainables):
    """One weight and its optimizer."""

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([self.weight], lr=0.1)
        base: Any = SimpleNamespace(device=torch.device("cpu"))
        scheduler = get_scheduler("constant", optimizer)
        super().__init__(
            base, optimizer, scheduler, KLController(0.2, None, 1), RewardScaling(False, None, lambda x: x)
        )

    def write(self, staging: Path, step: int, evaluations: Evaluations, health: WatchState | None = None) -> None:
        (staging / "policy").write_bytes(b"x" * 1000)


@pytest.mark.parametrize("fails", [False, True])
def test_untouched_restores_what_was_trained_inside(fails: bool) -> None:
    kept = Kept()
    try:
        with fault_tolerance.untouched(kept):
            kept.weight.sum().backward()
            kept.optimizer.step()
            assert not torch.equal(kept.weight, torch.ones(3))
            if fails:
                raise StageError("no")
    except StageError:
        assert fails
    assert torch.equal(kept.weight, torch.ones(3)) and kept.weight.grad is None and not kept.optimizer.state


def test_trial_checkpoint_is_written_and_removed(tmp_path: Path) -> None:
    run = Home(tmp_path).create(Stage.PPO, "", "run")
    kept = Kept()
    assert fault_tolerance.write_trial_checkpoint(kept, run, [], 3) > 1000
    assert list(run.checkpoints.iterdir()) == [] and list((run.path / "scratch").iterdir()) == []


def test_trial_checkpoint_refuses_a_disk_with_room_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Home(tmp_path).create(Stage.PPO, "", "run")
    kept = Kept()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2000))
    with pytest.raises(StageError, match="save_total_limit"):
        fault_tolerance.write_trial_checkpoint(kept, run, [], 3)


def events(run: RunDir) -> list[Event]:
    return list(EventReader(run.attempt_dir(1) / "events.jsonl").read())


@pytest.mark.slow
def test_a_run_is_the_same_with_and_without_canary(
    tmp_path: Path, base: Path, reward_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (*PPO, "max_steps=2", "eval_steps=0", f"reward_model_path={reward_model}")
    home = Home(tmp_path / "home")
    plain, _ = finish(home, base, Stage.PPO, *keys)
    monkeypatch.setenv(fault_tolerance.CANARY, "1")
    sung, _ = finish(home, base, Stage.PPO, *keys)
    notices = [event.data["message"] for event in events(sung) if event.kind == "health"]
    assert any("responses of 7 tokens, one update and one checkpoint" in message for message in notices)
    assert not any("canary" in event.data.get("message", "") for event in events(plain))
    phases = [event.phase for event in events(sung) if event.kind == "phase"]
    assert phases[:6] == ["load", "rollout", "score", "update", "save", "evaluate"]
    for name in ("adapter_model.safetensors", "value_head.safetensors"):
        one, other = (load_file(run.adapter / name) for run in (plain, sung))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert plain.samples_file.read_bytes() == sung.samples_file.read_bytes()
    assert sorted(path.name for path in sung.checkpoints.iterdir()) == ["step-000002"]


def test_command_line_passes_the_canary_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["launch", "sft", "model_name_or_path=demo", "dataset_name=demo", "load_in_8bit=false", "--dry-run"]
    home = ["--home", str(tmp_path)]
    assert main([*words, *home, "--canary"]) == 2
    assert "`--canary` dry-runs PPO's worst step" in capsys.readouterr().err
    assert main([*words, *home, "--no-canary"]) == main([*words, *home]) == 0
    reward_model = tmp_path / "reward_model"
    reward_model.mkdir()
    (reward_model / "config.json").write_text("{}")
    (reward_model / "model.safetensors").write_bytes(b"")
    words[1] = "ppo"
    assert main([*words, f"reward_model_path={reward_model}", *home, "--canary", "--json"]) == 0
    assert '"STACKLLAMA_CANARY": "1"' in capsys.readouterr().out
