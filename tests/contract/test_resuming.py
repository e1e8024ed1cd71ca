"""Changes of a recipe since the checkpoint that a run resumes from."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stackllama_engine.contract import resuming
from stackllama_engine.contract.errors import RefusedError
from stackllama_engine.contract.recipe import RECIPES, PPORecipe, RewardRecipe, SFTRecipe, TrainRecipe
from stackllama_engine.contract.recipe_io import dump_recipe, load_recipe
from stackllama_engine.contract.resuming import Changes, changes, check_resume, remember
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import TRAINING_STAGES, Stage

GIVEN = ["model_name_or_path=some/base", "load_in_8bit=false", "max_steps=10"]


def recipe(stage: Stage, *keys: str) -> Any:
    extra = ["reward_model_path=some/judge"] if stage is Stage.PPO else []
    return load_recipe(stage, None, [*GIVEN, *extra, *keys])


def after(folder: Path, stage: Stage, before: TrainRecipe, *keys: str) -> Changes:
    checkpoint = folder / "step-000002"
    checkpoint.mkdir(exist_ok=True)
    remember(checkpoint, before)
    return changes(checkpoint, recipe(stage, *keys))


@pytest.mark.parametrize("stage", TRAINING_STAGES)
def test_unchanged_recipe_has_no_notice(tmp_path: Path, stage: Stage) -> None:
    found = after(tmp_path, stage, recipe(stage))
    assert (found.notice(), found.refusal()) == (None, None)


def test_notice_names_kept_learning_rate_and_applied_dropout(tmp_path: Path) -> None:
    found = after(tmp_path, Stage.SFT, recipe(Stage.SFT), "learning_rate=0.5", "lora_dropout=0.25", "max_steps=20")
    assert found.refusal() is None
    assert found.notice() == (
        "the recipe has changed since step-000002: applied from now on: `lora_dropout` 0.05 → 0.25, `max_steps` 10 → "
        "20; kept from the checkpoint: `learning_rate` stays 0.0002, not 0.5"
    )


def test_optimizer_keys_are_kept_by_the_trainer_and_applied_by_ppo(tmp_path: Path) -> None:
    sft = after(tmp_path, Stage.SFT, recipe(Stage.SFT), "weight_decay=0.5")
    assert [change.key for change in sft.kept] == ["weight_decay"]
    ppo = after(tmp_path, Stage.PPO, recipe(Stage.PPO), "weight_decay=0.5", "kl_coef=0.9")
    assert [change.key for change in ppo.applied] == ["weight_decay"]
    assert [change.key for change in ppo.kept] == ["kl_coef"]


@pytest.mark.parametrize(
    ("key", "quoted"),
    [
        ("lora_r=8", "`lora_r` 16 → 8"),
        ("lora_alpha=64", "`lora_alpha` 32 → 64"),
        ("lora_target_modules=[q_proj]", '`lora_target_modules` all-linear → ["q_proj"]'),
        ("model_name_or_path=other/base", "`model_name_or_path` some/base → other/base"),
        ("optim=adafactor", "`optim` adamw_torch_fused → adafactor"),
    ],
)
def test_changed_keys_that_weights_depend_on_are_refused(tmp_path: Path, key: str, quoted: str) -> None:
    refusal = after(tmp_path, Stage.SFT, recipe(Stage.SFT), key).refusal()
    assert refusal is not None and quoted in refusal and "start a new run" in refusal


def test_a_run_from_before_the_default_adapter_changed_keeps_its_own(tmp_path: Path) -> None:
    """Its recipe says null, which is PEFT's default; the present default would be another adapter."""
    before = recipe(Stage.SFT, "lora_target_modules=null")
    assert after(tmp_path, Stage.SFT, before, "lora_target_modules=null").all == []
    refusal = after(tmp_path, Stage.SFT, before).refusal()
    assert refusal is not None and "`lora_target_modules` empty → all-linear" in refusal


def test_max_steps_below_the_checkpoint_is_refused(tmp_path: Path) -> None:
    refusal = after(tmp_path, Stage.SFT, recipe(Stage.SFT), "max_steps=1").refusal()
    assert refusal is not None and "`max_steps: 1`: step-000002 is past that step" in refusal


def test_moved_base_is_applied_and_altered_base_refused(tmp_path: Path) -> None:
    def base(name: str, content: bytes) -> Path:
        (tmp_path / name).mkdir()
        header = json.dumps({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
        (tmp_path / name / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content)
        return tmp_path / name

    one, moved, other = base("one", b"same"), base("moved", b"same"), base("other", b"else")
    before = recipe(Stage.SFT, f"model_name_or_path={one}")
    assert [each.key for each in after(tmp_path, Stage.SFT, before, f"model_name_or_path={moved}").applied] == [
        "model_name_or_path"
    ]
    assert after(tmp_path, Stage.SFT, before, f"model_name_or_path={other}").refusal() is not None
    (one / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    refusal = changes(tmp_path / "step-000002", before).refusal()
    assert refusal is not None and f"→ {one} with other weights" in refusal


@pytest.mark.parametrize(("rank", "alpha", "refused"), [(16, 32, []), (8, 32, ["lora_r"]), (16, 64, ["lora_alpha"])])
def test_older_checkpoint_is_compared_by_its_adapter(tmp_path: Path, rank: int, alpha: int, refused: list[str]) -> None:
    checkpoint = tmp_path / "step-000002"
    checkpoint.mkdir()
    config = {"r": rank, "lora_alpha": alpha, "target_modules": ["q", "v"], "base_model_name_or_path": "some/base"}
    (checkpoint / "adapter_config.json").write_text(json.dumps(config))
    found = changes(checkpoint, recipe(Stage.SFT))
    assert [change.key for change in found.refused] == refused and found.notice() is None


def test_older_ppo_checkpoint_is_compared_by_its_shapes(tmp_path: Path) -> None:
    checkpoint = tmp_path / "step-000002"
    checkpoint.mkdir()
    header = json.dumps({"m.lora_A.weight": {"dtype": "F32", "shape": [4, 9], "data_offsets": [0, 144]}}).encode()
    (checkpoint / "policy.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(144))
    assert [str(change) for change in changes(checkpoint, recipe(Stage.PPO)).refused] == ["`lora_r` 4 → 16"]


def test_check_resume_refuses_before_anything_is_started(tmp_path: Path) -> None:
    run = Home(tmp_path).create(Stage.SFT, dump_recipe(recipe(Stage.SFT)), "changed")
    assert check_resume(run, recipe(Stage.SFT)) is None  # nothing to resume from
    (run.checkpoints / "step-000002").mkdir()
    remember(run.checkpoints / "step-000002", recipe(Stage.SFT))
    notice = check_resume(run, recipe(Stage.SFT, "max_steps=12"))
    assert notice is not None and "`max_steps` 10 → 12" in notice
    with pytest.raises(RefusedError, match=r"Run `changed`: The recipe has changed .*`lora_r` 16 → 8"):
        check_resume(run, recipe(Stage.SFT, "lora_r=8"))


def test_batch_sizes_from_a_restart_are_not_reported_as_changes(tmp_path: Path) -> None:
    run = Home(tmp_path).create(Stage.SFT, dump_recipe(recipe(Stage.SFT)), "halved")
    (run.checkpoints / "step-000002").mkdir()
    halved = msgspec.structs.replace(recipe(Stage.SFT), per_device_train_batch_size=2)
    remember(run.checkpoints / "step-000002", halved)
    assert check_resume(run, recipe(Stage.SFT)) is not None
    run.attempt_dir(1).mkdir()
    (run.attempt_dir(1) / "restart.json").write_text("{}")
    assert check_resume(run, recipe(Stage.SFT)) is None


def test_every_key_that_is_kept_or_refused_is_one_of_a_recipe() -> None:
    coming = {"value_learning_rate"}
    for stage, cls in ((Stage.SFT, SFTRecipe), (Stage.REWARD, RewardRecipe), (Stage.PPO, PPORecipe)):
        assert RECIPES[stage] is cls
        assert resuming.KEPT[stage] - coming <= set(cls.__struct_fields__)
    assert set(PPORecipe.__struct_fields__) >= resuming.REFUSED
