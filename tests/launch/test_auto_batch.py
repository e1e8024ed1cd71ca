"""`per_device_train_batch_size: auto`: the largest micro-batch that fits, chosen once, at launch."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stackllama_engine.budget.estimate import estimate
from stackllama_engine.budget.model_files import read_architecture
from stackllama_engine.contract.base import DEMO_BASE
from stackllama_engine.contract.errors import RecipeError
from stackllama_engine.contract.recipe import TrainedRecipe
from stackllama_engine.contract.recipe_io import build_recipe, load_recipe
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import auto_batch
from stackllama_engine.launch.launcher import plan

WORDS = ("load_in_8bit=false", "dataset_name=demo", "gradient_accumulation_steps=6")
STAGES = {
    Stage.SFT: (),
    Stage.REWARD: (),
    Stage.PREFERENCE: (),
    Stage.PPO: ("reward_funcs=[stackllama_engine.rewards:matches]",),
}
Recipe = TrainedRecipe


def recipe_of(stage: Stage, size: object, *more: str) -> Any:
    words = (f"model_name_or_path={DEMO_BASE}", *WORDS, *STAGES[stage], *more)
    return load_recipe(stage, None, (*words, f"per_device_train_batch_size={size}"))


def upper_bound(recipe: Recipe) -> int:
    return estimate(recipe, read_architecture(DEMO_BASE), on_gpu=True).device[1]


@pytest.mark.parametrize("stage", STAGES)
def test_the_largest_micro_batch_that_fits_keeps_the_effective_batch(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = [recipe_of(stage, size, f"gradient_accumulation_steps={24 // size}") for size in (1, 2, 3, 4, 6, 8)]
    needs = [upper_bound(recipe) for recipe in numbers]
    assert needs == sorted(needs)
    memory = needs[4]
    card = SimpleNamespace(memory=memory, name="A")
    asked: list[list[str]] = []
    monkeypatch.setattr(auto_batch, "smallest_card", lambda names: asked.append(names) or card)
    resolved: Any = auto_batch.resolve_batch(recipe_of(stage, "auto", "num_processes=1"), ["3", "4"])
    assert asked == [["3"]], "the cards that it uses decide, not all of the machine"
    size, accumulation = resolved.per_device_train_batch_size, resolved.gradient_accumulation_steps
    assert size * accumulation == 4 * 6 and upper_bound(resolved) <= memory
    assert not [one for one in numbers if one.per_device_train_batch_size > size and upper_bound(one) <= memory]
    card.memory = 1
    with pytest.raises(RecipeError, match="not even a micro-batch of 1 fits into"):
        auto_batch.resolve_batch(recipe_of(stage, "auto", "num_processes=1"), ["0"])


def test_an_unknown_budget_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(auto_batch, "smallest_card", lambda _: None)
    with pytest.raises(RecipeError, match="the GPU's memory is not known here; set `per_device_train_batch_size`"):
        auto_batch.resolve_batch(recipe_of(Stage.SFT, "auto"), ["0"])
    monkeypatch.setattr(auto_batch, "model_files", lambda *_: None)
    with pytest.raises(RecipeError, match="are not on this machine to be measured; set"):
        auto_batch.resolve_batch(recipe_of(Stage.SFT, "auto", "use_cpu=true"), [])
    with pytest.raises(RecipeError, match="`per_device_train_batch_size: auto`: because; set"):
        auto_batch.refuse_open_batch(recipe_of(Stage.PPO, "auto"), "because")


def test_the_numbers_are_written_into_the_recipe(tmp_path: Path) -> None:
    planned = plan(Home(tmp_path), recipe_of(Stage.SFT, "auto", "use_cpu=true"))
    assert "per_device_train_batch_size: 24" in planned.recipe_yaml
    assert "gradient_accumulation_steps: 1" in planned.recipe_yaml
    assert any("`per_device_train_batch_size: auto` is 24" in notice for notice in planned.notices)


def test_a_later_stage_of_a_pipeline_is_tried_at_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: dict[str, Any] = {"model_name_or_path": str(DEMO_BASE), "dataset_name": "demo", "use_cpu": True}
    recipe = build_recipe(Stage.PIPELINE, keys | {"ppo": {"per_device_train_batch_size": "auto"}})
    plan(Home(tmp_path), recipe)
    monkeypatch.setattr(auto_batch, "main_memory", lambda: SimpleNamespace(total=1))
    with pytest.raises(RecipeError, match="not even a micro-batch of 1 fits into"):
        plan(Home(tmp_path), recipe)


def test_auto_and_a_limit_of_tokens_exclude_each_other() -> None:
    with pytest.raises(RecipeError, match="both set the micro-batch"):
        recipe_of(Stage.REWARD, "auto", "max_tokens_per_micro_batch=4096")
