"""`base_precision: auto` and `gradient_checkpointing: auto`, decided from the estimate."""

from typing import Any

import msgspec
import pytest

from stackllama_engine.budget.architecture import Architecture
from stackllama_engine.budget.auto import Case, prices, resolve, resolve_or_nearest
from stackllama_engine.contract.errors import RefusedError
from stackllama_engine.contract.recipe import TrainedRecipe
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.stages import Stage

GIB = 1 << 30


def case(arch: Architecture | None, gib: float | None, stage: Stage = Stage.SFT, **keys: Any) -> Case:
    needed = {"model_name_or_path": "m", "bf16": True} | ({"reward_model_path": "r"} if stage is Stage.PPO else {})
    recipe = build_recipe(stage, needed | keys)
    assert isinstance(recipe, TrainedRecipe)
    return Case(recipe=recipe, arch=arch, bytes=None if gib is None else int(gib * GIB), place="GPU 0")


def decided(recipe: TrainedRecipe) -> tuple[str, Any]:
    return recipe.base_precision, recipe.gradient_checkpointing


@pytest.mark.parametrize(
    ("gib", "expected"),
    [(80, ("bf16", False)), (24, ("bf16", True)), (16, ("int8", True)), (12, ("nf4", True))],
)
def test_the_most_precise_that_fits_is_taken(llama_7b: Architecture, gib: float, expected: tuple[str, Any]) -> None:
    assert [decided(one) for one in resolve([case(llama_7b, gib)])] == [expected]


def test_the_neediest_stage_of_a_pipeline_decides_for_all(llama_7b: Architecture) -> None:
    few = {"per_device_train_batch_size": 1, "local_rollout_forward_batch_size": 4}
    small, large = case(llama_7b, 24), case(llama_7b, 24, Stage.PPO, **few)
    alone = resolve([large])[0].base_precision
    assert decided(resolve([small])[0])[0] == "bf16"
    together = resolve([small, msgspec.structs.replace(large, bytes=17 * GIB)])
    assert {one.base_precision for one in together} == {
        resolve([msgspec.structs.replace(large, bytes=17 * GIB)])[0].base_precision
    }
    assert together[0].base_precision != "bf16" and alone == "bf16"


def test_a_stage_that_says_its_precision_keeps_it(llama_7b: Architecture) -> None:
    said = case(llama_7b, 80, Stage.REWARD, base_precision="nf4", gradient_checkpointing=True)
    first, second = resolve([case(llama_7b, 80), said])
    assert (decided(first), decided(second)) == (("bf16", False), ("nf4", True))


def test_what_cannot_be_quantised_stays_whole(llama_7b: Architecture) -> None:
    full = case(llama_7b, 12, use_peft=False)
    packed = case(llama_7b, 12, model_name_or_path="m.gguf")
    vllm = case(llama_7b, 12, Stage.PPO, use_vllm=True)
    assert [resolve([one])[0].base_precision for one in (full, packed, vllm)] == ["dtype", "bf16", "bf16"]
    wide = case(llama_7b, 80, dtype="float32")
    assert resolve([wide])[0].base_precision == "dtype", "a dtype that was asked for is the most precise"


@pytest.mark.parametrize("arch", [True, False])
def test_the_cpu_takes_the_dtype_whatever_is_known(llama_7b: Architecture, arch: bool) -> None:
    on_cpu = msgspec.structs.replace(case(llama_7b if arch else None, 1000), on_gpu=False)
    assert decided(resolve([on_cpu])[0]) == ("dtype", False)
    small = msgspec.structs.replace(case(llama_7b, 30), on_gpu=False)
    assert decided(resolve([small])[0]) == ("dtype", True), "checkpointing where the memory needs it"


def test_an_unknown_budget_is_refused_with_the_key_to_set(llama_7b: Architecture) -> None:
    strange = msgspec.structs.replace(llama_7b, unknown="`x` is not known")
    for one, why in (
        (case(None, 80), "the files of `m` are not on this machine"),
        (case(strange, 80), "`x` is not known"),
        (case(llama_7b, None), "the driver does not say how much memory GPU 0 has"),
    ):
        with pytest.raises(RefusedError, match="Set `base_precision` to bf16, int8 or nf4") as caught:
            resolve([one])
        assert why in str(caught.value)
    said = case(None, 80, base_precision="bf16")
    assert decided(resolve([said])[0]) == ("bf16", True), "without an estimate, a GPU's memory is saved"


def test_nothing_that_fits_is_refused_with_the_ways_out(llama_7b: Architecture) -> None:
    tiny = case(llama_7b, 4)
    with pytest.raises(
        RefusedError, match=r"sft fits in no precision: it needs at least .* GiB in nf4, and GPU 0 has 4\.0"
    ):
        resolve([tiny])
    (nearest,), why = resolve_or_nearest([tiny])
    assert decided(nearest) == ("nf4", True) and "fits in no precision" in why


def test_an_open_micro_batch_is_estimated_at_a_useful_size(llama_7b: Architecture) -> None:
    one = case(llama_7b, 80)
    open_batch = msgspec.structs.replace(
        one, recipe=msgspec.structs.replace(one.recipe, per_device_train_batch_size="auto")
    )
    (found,) = resolve([open_batch])
    assert (decided(found), found.per_device_train_batch_size) == (("bf16", False), "auto")


def test_prices_are_those_of_the_neediest_stage(llama_7b: Architecture) -> None:
    found = prices([case(llama_7b, 24, base_precision="int8"), case(llama_7b, 24, Stage.REWARD)])
    assert [one.precision for one in found] == ["bf16", "int8", "nf4"]
    assert found[0].device[0] > found[1].device[0] > found[2].device[0]
    assert prices([case(llama_7b, 24, use_peft=False)]) == []
    assert prices([case(None, 24)]) == []
