"""Verdicts and suggestions."""

from typing import Any

import msgspec
import pytest

from stackllama_engine.budget.architecture import Architecture
from stackllama_engine.budget.estimate import estimate
from stackllama_engine.budget.fit import fits, suggestions
from stackllama_engine.contract.recipe import MergeRecipe
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.stages import Stage

from .test_estimate import recipe

GIB = 1 << 30
TOO_LARGE: list[tuple[Stage, dict[str, Any], int]] = [
    (Stage.SFT, {"gradient_checkpointing": False}, 24),
    (Stage.SFT, {}, 10),
    (Stage.SFT, {"use_peft": False, "load_in_8bit": False, "dtype": "float32"}, 24),
    (Stage.REWARD, {"gradient_accumulation_steps": 3}, 24),
    (Stage.PPO, {"local_rollout_forward_batch_size": 64, "per_device_train_batch_size": 8}, 24),
    (Stage.PPO, {}, 12),
]


def test_the_verdict_follows_the_interval(llama_7b: Architecture) -> None:
    found = estimate(recipe(Stage.SFT), llama_7b, on_gpu=True)
    low, high = found.device
    assert [fits(found, size) for size in (low - 1, low, high - 1, high)] == ["no", "tight", "tight", "yes"]


@pytest.mark.parametrize(("stage", "keys", "gib"), TOO_LARGE)
def test_every_change_is_a_valid_recipe_and_saves_what_it_says(
    llama_7b: Architecture, stage: Stage, keys: dict[str, Any], gib: int
) -> None:
    before = recipe(stage, **keys)
    peak = estimate(before, llama_7b, on_gpu=True)
    assert fits(peak, gib * GIB) != "yes"
    found = suggestions(before, llama_7b, gib * GIB)
    assert found
    for one in found:
        changed: Any = build_recipe(stage, msgspec.to_builtins(before) | one.changes)
        after = estimate(changed, llama_7b, on_gpu=True)
        assert after.device == one.device_after
        assert one.saving == peak.allocated - after.allocated > 0
        assert one.fits == fits(after, gib * GIB)
        assert one.title and one.price
        assert all(getattr(before, key) != value for key, value in one.changes.items())


@pytest.mark.parametrize(("stage", "keys", "gib"), TOO_LARGE)
def test_one_of_them_makes_it_fit(llama_7b: Architecture, stage: Stage, keys: dict[str, Any], gib: int) -> None:
    verdicts = [one.fits for one in suggestions(recipe(stage, **keys), llama_7b, gib * GIB)]
    assert "yes" in verdicts
    if verdicts[0] == "yes":  # otherwise it is the last: several changes together
        assert verdicts == sorted(verdicts, key=["yes", "tight", "no"].index)
    else:
        assert verdicts[-1] == "yes"


@pytest.mark.parametrize(
    ("stage", "said"), [(Stage.SFT, "truncated or split"), (Stage.REWARD, "dropped"), (Stage.PREFERENCE, "dropped")]
)
def test_a_shorter_limit_says_what_becomes_of_longer_texts(llama_7b: Architecture, stage: Stage, said: str) -> None:
    shorter = [one for one in suggestions(recipe(stage), llama_7b, 8 * GIB) if one.title.startswith("max length")]
    assert shorter and all(said in one.price for one in shorter)


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.REWARD, Stage.PPO])
def test_smaller_batches_keep_the_effective_batch(llama_7b: Architecture, stage: Stage) -> None:
    keys = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2}
    before: Any = recipe(stage, **keys)
    found = [one for one in suggestions(before, llama_7b, 16 * GIB) if one.title.startswith("micro-batch")]
    for one in found:
        if set(one.changes) <= {"per_device_train_batch_size", "gradient_accumulation_steps"}:
            after = keys | one.changes
            assert after["per_device_train_batch_size"] * after["gradient_accumulation_steps"] == 12
    assert found


def test_the_largest_micro_batch_that_fits_is_offered(llama_7b: Architecture) -> None:
    keys = {"per_device_train_batch_size": 8, "load_in_8bit": False, "gradient_checkpointing": False}
    found = next(
        one for one in suggestions(recipe(Stage.SFT, **keys), llama_7b, 40 * GIB) if one.title.startswith("micro-batch")
    )
    size = found.changes["per_device_train_batch_size"]
    larger = estimate(recipe(Stage.SFT, **keys | {"per_device_train_batch_size": 2 * size}), llama_7b, on_gpu=True)
    assert found.fits == "yes"
    assert fits(larger, 40 * GIB) != "yes"


def test_suggestions_never_exclude_each_other(llama_7b: Architecture) -> None:
    keys = {"model_name_or_path": "model.gguf", "load_in_8bit": False}
    titles = [one.title for one in suggestions(recipe(Stage.SFT, **keys), llama_7b, 10 * GIB)]
    assert titles
    assert not any("8 bits" in title or "4 bits" in title for title in titles)


def test_nothing_is_suggested_that_saves_nothing(llama_7b: Architecture) -> None:
    found = suggestions(recipe(Stage.REWARD), llama_7b, 80 * GIB)
    assert all(one.saving > 0.01 * 10**9 for one in found)
    merge = recipe(Stage.MERGE)
    assert isinstance(merge, MergeRecipe)
    assert suggestions(merge, llama_7b, GIB) == []


@pytest.mark.parametrize(("stage", "keys", "gib"), TOO_LARGE)
def test_suggestions_only_use_what_training_supports(
    llama_7b: Architecture, stage: Stage, keys: dict[str, Any], gib: int
) -> None:
    before = recipe(stage, **keys)
    one, eight = (estimate(before, llama_7b, gpus=gpus, on_gpu=True) for gpus in (1, 8))
    assert eight.allocated >= one.allocated, "processes hold copies, no shards"
    words = " ".join(f"{found.title} {found.price}" for found in suggestions(before, llama_7b, gib * GIB, gpus=8))
    assert not any(word in words.lower() for word in ("shard", "zero", "fsdp", "num_processes"))


FULL = {"use_peft": False, "load_in_8bit": False, "dtype": "bfloat16"}


def test_an_8_bit_optimizer_is_proposed_where_it_saves(llama_7b: Architecture) -> None:
    def proposed(on_gpu: bool = True, **keys: Any) -> list[str]:
        found = suggestions(recipe(Stage.SFT, **keys), llama_7b, 40 * GIB, on_gpu=on_gpu)
        return [one.changes["optim"] for one in found if set(one.changes) == {"optim"}]

    assert proposed(**FULL) == ["paged_adamw_8bit"]
    assert proposed(on_gpu=False, **FULL) == ["adamw_8bit"], "a CPU has nowhere to page to"
    assert proposed(**FULL, optim="paged_adamw_8bit") == []
    assert proposed(lora_r=2) == [], "a small adapter's moments are small beside the base"


def test_less_rounding_is_suggested_first(llama_7b: Architecture) -> None:
    wide = suggestions(recipe(Stage.SFT, **FULL), llama_7b, 48 * GIB)
    assert next(one for one in wide if "optim" in one.changes).changes == {"optim": "adamw_8bit"}


def test_sampling_without_vllm_is_proposed_where_its_share_is_too_much(llama_7b: Architecture) -> None:
    keys = {
        "load_in_8bit": False,
        "dtype": "bfloat16",
        "use_vllm": True,
        "vllm_gpu_memory_utilization": 0.5,
        "local_rollout_forward_batch_size": 8,
        "per_device_train_batch_size": 1,
        "lora_target_modules": ["q_proj", "v_proj"],
    }
    found = suggestions(recipe(Stage.PPO, **keys), llama_7b, 20 * GIB, card=40 * GIB)  # half of it is taken
    one = next(one for one in found if "use_vllm" in one.changes)
    assert one.changes == {"use_vllm": False} and one.fits == "yes"
    assert one.saving > 15 * GIB  # of the 20 that vLLM takes of the whole card; then our own cache counts


def test_calibration_changes_the_suggestions(llama_7b: Architecture) -> None:
    asked = recipe(Stage.SFT)
    device = estimate(asked, llama_7b, on_gpu=True).device[1]

    def heavier(_: Any, found: Any) -> Any:
        return msgspec.structs.replace(found, device=(2 * found.device[0], 2 * found.device[1]))

    plain = suggestions(asked, llama_7b, device)
    measured = suggestions(asked, llama_7b, device, adjust=heavier)
    assert plain[0].fits == "yes" and measured[0].device_after[0] > plain[0].device_after[0]
