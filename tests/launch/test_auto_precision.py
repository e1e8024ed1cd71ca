"""`auto` at launch: decided from the card, written down, and never decided again."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.llama_7b import LLAMA_7B
from tests.weights import write_weights

from stackllama_engine.contract.errors import RecipeError, RefusedError
from stackllama_engine.contract.recipe import AnyRecipe, PipelineRecipe, SFTRecipe
from stackllama_engine.contract.recipe_io import dump_recipe, load_recipe
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import auto_precision, launcher
from stackllama_engine.launch.auto_precision import refuse_auto, resolve_auto
from stackllama_engine.launch.gpus import Card

GIB = 1 << 30


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(LLAMA_7B))
    write_weights(path)
    return str(path)


def on_cards(monkeypatch: pytest.MonkeyPatch, *gib: int) -> list[str]:
    """Give this machine GPUs of these sizes."""
    cards = {str(index): Card("H200", size * GIB) for index, size in enumerate(gib)}

    def smallest(names: list[str]) -> Card:
        return min((cards[name] for name in names), key=lambda card: card.memory)

    monkeypatch.setattr(auto_precision, "smallest_card", smallest)
    monkeypatch.setattr(launcher, "visible_gpus", lambda: list(cards))
    return list(cards)


def sft(model: str, *words: str) -> AnyRecipe:
    return load_recipe(Stage.SFT, None, [f"model_name_or_path={model}", "dataset_name=demo", "bf16=true", *words])


def decided(recipe: Any) -> tuple[Any, Any]:
    return recipe.base_precision, recipe.gradient_checkpointing


def test_the_smallest_card_that_is_used_decides(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = on_cards(monkeypatch, 80, 16)
    assert decided(resolve_auto(sft(model, "num_processes=1"), gpus)) == ("bf16", False)
    assert decided(resolve_auto(sft(model), gpus)) == ("int8", True)
    assert decided(resolve_auto(sft(model, "use_cpu=true"), gpus))[0] == "dtype"
    assert decided(resolve_auto(sft(model), []))[0] == "dtype"


def test_what_was_decided_stands_in_the_recipe_of_the_plan(
    model: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cards(monkeypatch, 24)
    planned = launcher.plan(home, sft(model), "mine")
    assert decided(planned.recipe) == ("bf16", True) and decided(planned.request) == ("auto", "auto")
    assert "base_precision: bf16" in planned.recipe_yaml and "gradient_checkpointing: true" in planned.recipe_yaml
    assert "auto\n" not in planned.recipe_yaml.partition("base_precision")[2].partition("use_bnb")[0]


def test_a_pipeline_is_decided_once_for_its_neediest_stage(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = on_cards(monkeypatch, 20)
    words = [f"model_name_or_path={model}", "dataset_name=demo", "bf16=true"]
    recipe = resolve_auto(load_recipe(Stage.PIPELINE, None, words), gpus)
    assert isinstance(recipe, PipelineRecipe)
    sections = [recipe.sft, recipe.reward, recipe.ppo]
    assert len({section["base_precision"] for section in sections}) == 1
    assert "auto" not in [section[key] for section in sections for key in ("base_precision", "gradient_checkpointing")]
    assert decided(resolve_auto(sft(model), gpus)) == ("bf16", True)
    assert recipe.sft["base_precision"] != "bf16", "alone SFT would fit in bf16"
    assert "model_name_or_path" not in recipe.reward


def test_an_unknown_model_is_refused_on_a_gpu_alone(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cards(monkeypatch, 80)
    with pytest.raises(RefusedError, match="Set `base_precision` to bf16, int8 or nf4"):
        launcher.plan(home, sft("some/model"))
    assert decided(launcher.plan(home, sft("some/model", "base_precision=nf4")).recipe) == ("nf4", True)
    assert decided(launcher.plan(home, sft("some/model", "use_cpu=true")).recipe) == ("dtype", False)


def test_a_run_that_has_begun_is_not_decided_again(model: str) -> None:
    begun = msgspec.structs.replace(sft(model), base_precision="int8", gradient_checkpointing=True)
    assert isinstance(begun, SFTRecipe)
    refuse_auto(begun)
    with pytest.raises(RecipeError, match="`base_precision: auto` is decided at launch, and this run has begun"):
        refuse_auto(msgspec.structs.replace(begun, base_precision="auto"))


def test_a_jobs_first_attempt_decides_and_writes_it_down(
    model: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = on_cards(monkeypatch, 24)
    run = home.create(Stage.SFT, dump_recipe(sft(model)), "job")
    assert decided(launcher._decided(run, sft(model), gpus)) == ("bf16", True)
    assert decided(load_recipe(Stage.SFT, run.recipe_file)) == ("bf16", True)
    monkeypatch.setattr(launcher, "sealed", lambda _folder: ["step-00000001"])
    with pytest.raises(RecipeError, match="this run has begun"):
        launcher._decided(run, sft(model), gpus)
    smaller = on_cards(monkeypatch, 8)
    written = load_recipe(Stage.SFT, run.recipe_file)
    assert launcher._decided(run, written, smaller) == written, "a resume on a smaller card keeps what was decided"
