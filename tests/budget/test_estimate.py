"""Estimates of whole recipes: against measured and published numbers, and how they must change."""

from typing import Any

import msgspec
import pytest

from stackllama_engine.budget import lm_head
from stackllama_engine.budget.architecture import Architecture
from stackllama_engine.budget.estimate import Estimate, EstimatedRecipe, attention_kind, estimate
from stackllama_engine.budget.inference import distinct_prompts
from stackllama_engine.budget.model_files import read_architecture
from stackllama_engine.budget.precision import Precision, precision_of
from stackllama_engine.contract.base import DEMO_BASE
from stackllama_engine.contract.recipe import PPORecipe, TrainRecipe
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.stages import Stage

GB = 10**9
ALL_LINEAR = 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
"""Elements of the default adapter on LLaMA-7B: rank 16, every matrix of 32 layers."""
FOUR_BIT = {"load_in_8bit": False, "load_in_4bit": True}
NEEDED: dict[Stage, dict[str, Any]] = {
    Stage.SFT: {"model_name_or_path": "org/model"},
    Stage.REWARD: {"model_name_or_path": "org/model"},
    Stage.PREFERENCE: {"model_name_or_path": "org/model"},
    Stage.PPO: {"model_name_or_path": "org/model", "reward_model_path": "org/judge"},
    Stage.MERGE: {"adapter_path": "somewhere"},
}


DECIDED: dict[Stage, dict[str, Any]] = {
    Stage.SFT: {"base_precision": "int8", "gradient_checkpointing": True},
    Stage.REWARD: {"base_precision": "dtype", "gradient_checkpointing": False},
    Stage.PREFERENCE: {"base_precision": "int8", "gradient_checkpointing": True},
    Stage.PPO: {"base_precision": "int8", "gradient_checkpointing": False},
    Stage.MERGE: {},
}
"""Where a test says nothing else; `auto` is decided before anything is estimated."""


def recipe(stage: Stage, **keys: Any) -> EstimatedRecipe:
    said = {"base_precision"} if {"load_in_8bit", "load_in_4bit"} & set(keys) else set[str]()
    decided = {key: value for key, value in DECIDED[stage].items() if key not in said}
    return build_recipe(stage, NEEDED[stage] | decided | keys)  # type: ignore[return-value]


def on_gpu(arch: Architecture, stage: Stage, gpus: int = 1, **keys: Any) -> Estimate:
    return estimate(recipe(stage, **keys), arch, gpus=gpus, on_gpu=True)


@pytest.mark.parametrize("stage", list(NEEDED))
@pytest.mark.parametrize("gpu", [False, True])
def test_components_sum_to_the_peak(llama_7b: Architecture, stage: Stage, gpu: bool) -> None:
    found = estimate(recipe(stage), llama_7b, on_gpu=gpu)
    assert sum(one.bytes for one in found.components) == found.allocated
    assert found.allocated == max(one.bytes for one in found.phases)
    assert next(one for one in found.phases if one.name == found.peak).components == found.components
    assert all(one.bytes > 0 for phase in found.phases for one in phase.components)
    assert all(len({one.name for one in phase.components}) == len(phase.components) for phase in found.phases)
    assert found.allocated <= found.reserved[0] <= found.reserved[1]
    assert found.reserved[0] < found.device[0] <= found.device[1]
    assert [rule.name for rule in found.rules]


def test_phases_have_names_of_their_stage(llama_7b: Architecture) -> None:
    assert [one.name for one in on_gpu(llama_7b, Stage.PPO).phases] == ["rollout", "score", "update"]
    assert {one.name for one in on_gpu(llama_7b, Stage.MERGE).phases} == {"load", "merge", "save", "verify"}
    assert on_gpu(llama_7b, Stage.SFT).peak in {"loss", "last layer's backward"}


def test_int8_lora_estimate_at_batch_4_by_1024(llama_7b: Architecture) -> None:
    """Traced with fake tensors: 11.82 GB with reentrant checkpointing and adapters on q and v."""
    found = on_gpu(llama_7b, Stage.SFT, lora_target_modules=["q_proj", "v_proj"])
    assert found.allocated == pytest.approx(11.816 * GB, rel=0.01)


def test_the_default_adapter_is_on_every_matrix_of_the_layers(llama_7b: Architecture) -> None:
    """Rank 16 on q, k, v, o (4096 × 4096 each), gate, up (4096 × 11008) and down (11008 × 4096) of 32 layers."""
    assert ALL_LINEAR == 39_976_960
    found = on_gpu(llama_7b, Stage.SFT)
    few = on_gpu(llama_7b, Stage.SFT, lora_target_modules=["q_proj", "v_proj"])
    sizes, before = ({part.name: part.bytes for part in one.components} for one in (found, few))
    assert sizes["adapter"] == 4 * ALL_LINEAR and sizes["optimizer"] == 2 * 4 * ALL_LINEAR
    assert before["adapter"] == 4 * 16 * 2 * 8192 * 32


def test_int8_lora_at_batch_1_meets_the_rule(llama_7b: Architecture) -> None:
    """1.2 to 1.4 GB per billion parameters."""
    found = on_gpu(llama_7b, Stage.SFT, per_device_train_batch_size=1)
    rule = found.rules[-1]
    assert rule.low <= found.allocated <= rule.high


def test_full_bf16_training_holds_two_plus_two_plus_four_bytes(llama_7b: Architecture) -> None:
    keys = {"use_peft": False, "load_in_8bit": False, "per_device_train_batch_size": 1, "max_length": 8}
    found = on_gpu(llama_7b, Stage.SFT, **keys)
    assert found.allocated == pytest.approx(8 * llama_7b.parameters, rel=0.03)


@pytest.mark.parametrize(
    ("stage", "more", "less"),
    [
        (Stage.SFT, {"load_in_8bit": False}, {}),
        (Stage.SFT, {}, FOUR_BIT),
        (Stage.SFT, {"gradient_checkpointing": False}, {}),
        (Stage.SFT, {"use_peft": False, "load_in_8bit": False}, {"load_in_8bit": False}),
        (Stage.SFT, FOUR_BIT, FOUR_BIT | {"use_bnb_nested_quant": True}),
        (Stage.REWARD, {"dtype": "float32"}, {}),
        (Stage.REWARD, {}, {"gradient_checkpointing": True}),
        (Stage.PPO, {"local_rollout_forward_batch_size": 64}, {}),
        (Stage.PPO, {"policy_adapter_path": "somewhere"}, {}),
    ],
)
def test_memory_savers_lower_the_estimate(
    llama_7b: Architecture, stage: Stage, more: dict[str, Any], less: dict[str, Any]
) -> None:
    assert on_gpu(llama_7b, stage, **less).allocated < on_gpu(llama_7b, stage, **more).allocated


def test_a_reward_model_of_its_own_costs_its_weights(llama_7b: Architecture) -> None:
    shared = estimate(recipe(Stage.PPO), llama_7b, on_gpu=True)
    separate = estimate(recipe(Stage.PPO, dtype="bfloat16"), llama_7b, on_gpu=True, reward=llama_7b)
    weights = 2 * (llama_7b.parameters - llama_7b.embedding)
    small = 4 * 10**7 * 4
    assert weights - small < separate.allocated - shared.allocated <= weights


def test_reward_function_needs_no_memory(llama_7b: Architecture) -> None:
    adapter = estimate(recipe(Stage.PPO), llama_7b, on_gpu=True)
    function = estimate(recipe(Stage.PPO, reward_model_path=None, reward_funcs=["a:b"]), llama_7b, on_gpu=True)
    judge = next(one for one in adapter.components if one.name == "reward model")
    assert adapter.allocated - function.allocated == judge.bytes > 0
    assert all(one.name != "reward model" for phase in function.phases for one in phase.components)


def test_a_critics_adapter_costs_its_weights_gradients_and_states(llama_7b: Architecture) -> None:
    own, shared = (on_gpu(llama_7b, Stage.PPO, value_adapter=value) for value in (True, False))
    one = ALL_LINEAR
    assert own.peak == shared.peak == "update"
    assert own.allocated - shared.allocated == 4 * (1 + 1 + 2) * one
    # the policy's gradients wait for the critic's pass
    without_logits = {"response_length": 3, "gradient_accumulation_steps": 1}
    own, shared = (on_gpu(llama_7b, Stage.PPO, value_adapter=value, **without_logits) for value in (True, False))
    assert own.allocated - shared.allocated >= 4 * (1 + 1 + 2) * one


def test_without_a_critic_its_head_costs_nothing_either(llama_7b: Architecture) -> None:
    head, none = (
        on_gpu(llama_7b, Stage.PPO, value_adapter=False, advantage=advantage) for advantage in ("gae", "rloo")
    )
    assert head.allocated - none.allocated == 4 * (1 + 1 + 2) * llama_7b.hidden
    assert on_gpu(llama_7b, Stage.PPO, value_adapter=True, advantage="rloo") == none


def test_a_prompt_with_several_responses_is_read_once(llama_7b: Architecture) -> None:
    """In an evaluation every response has a prompt of its own."""
    keys = {"max_prompt_length": 2000, "response_length": 2, "advantage": "rloo", "local_rollout_forward_batch_size": 8}

    def rollout(n: int, held_out: int) -> int:
        found = on_gpu(llama_7b, Stage.PPO, num_generations=n, max_eval_samples=held_out, **keys)
        return next(phase.bytes for phase in found.phases if phase.name == "rollout")

    assert rollout(4, 1) <= rollout(2, 1) < rollout(2, 64) == rollout(4, 64)


@pytest.mark.parametrize(
    ("n", "batch", "local", "expected"),
    [(1, 8, 16, 8), (4, 8, 16, 3), (4, 2, 16, 2), (4, 1, 16, 1), (4, 32, 16, 4), (8, 7, 16, 2)],
)
def test_a_batch_may_begin_and_end_inside_a_group(n: int, batch: int, local: int, expected: int) -> None:
    keys = {"advantage": "rloo", "num_generations": n} if n > 1 else {}
    sizes = {"per_device_train_batch_size": local, "gradient_accumulation_steps": 1, "num_mini_batches": 1}
    names = {"model_name_or_path": "m", "reward_model_path": "r", "max_eval_samples": 1}
    recipe = build_recipe(Stage.PPO, names | sizes | keys | {"local_rollout_forward_batch_size": batch})
    assert isinstance(recipe, PPORecipe) and recipe.local_batch_size == local
    assert distinct_prompts(recipe) == expected


def test_a_critic_in_the_upper_layers_costs_its_share_and_the_states_that_it_reads(llama_7b: Architecture) -> None:
    keys = {"max_prompt_length": 101, "response_length": 28, "local_rollout_forward_batch_size": 4}
    whole, half, every, many = (
        on_gpu(llama_7b, Stage.PPO, value_adapter_layers=layers, **keys) for layers in (None, 0.5, 32, 99)
    )
    assert every == whole == many  # the launch refuses more layers than there are
    parts = [{one.name: one.bytes for one in each.components} for each in (whole, half)]
    assert parts[0]["adapter"] - parts[1]["adapter"] == 4 * ALL_LINEAR // 2
    assert parts[0]["optimizer"] - parts[1]["optimizer"] == 2 * 4 * ALL_LINEAR // 2
    states = 4 * 8 * 2 * 128 * 4 * llama_7b.hidden  # responses, tokens, and the float32 stream of an int8 base
    assert parts[1]["rollout record"] - parts[0]["rollout record"] == states


def test_ppo_adds_gradients_up_in_a_copy(llama_7b: Architecture) -> None:
    short = {
        "max_prompt_length": 2,
        "response_length": 1,
        "lora_target_modules": "all-linear",
    }
    found = on_gpu(llama_7b, Stage.PPO, lora_r=512, optim="adamw_8bit", max_eval_samples=1, **short)
    parts = {part.name: part.bytes for part in found.components}
    assert found.peak == "update"
    assert parts["temporaries"] == parts["gradients"] > 4 * 10**9


def test_a_head_that_caps_its_logits_keeps_what_autograd_needs_for_a_chunk(llama_7b: Architecture) -> None:
    """Of 128 tokens: 12 bytes per logit, and 2 for each of the two operations in bfloat16."""
    capped = msgspec.structs.replace(llama_7b, logit_steps=2)
    own, plain = (
        lm_head.chunk(arch, Precision(native=2), 500, trains=True, on_gpu=False) for arch in (capped, llama_7b)
    )
    assert own - plain == (12 + 2 * 2) * 128 * 32000


def test_a_large_rollout_batch_makes_rollout_the_peak(llama_7b: Architecture) -> None:
    found = on_gpu(llama_7b, Stage.PPO, local_rollout_forward_batch_size=64)
    assert found.peak == "rollout"
    assert max(found.components, key=lambda one: one.bytes).name == "kv cache"


def test_the_kv_cache_of_7b_in_bf16(llama_7b: Architecture) -> None:
    """2 · layers · kv · 2 bytes per token; on a GPU there is room for a multiple of 16 tokens."""
    keys = {"load_in_8bit": False, "dtype": "bfloat16", "local_rollout_forward_batch_size": 2}
    for gpu, tokens in ((True, 640), (False, 511 + 128)):
        found = estimate(recipe(Stage.PPO, **keys), llama_7b, on_gpu=gpu)
        cache = next(one for one in found.phases[0].components if one.name == "kv cache")
        assert cache.bytes == 2 * 32 * 4096 * 2 * 2 * tokens


def test_several_gpus_cost_a_copy_of_the_gradients(llama_7b: Architecture) -> None:
    one, two = on_gpu(llama_7b, Stage.SFT), on_gpu(llama_7b, Stage.SFT, gpus=2)
    assert two.allocated - one.allocated == 4 * ALL_LINEAR
    assert two.device[1] - two.reserved[1] > one.device[1] - one.reserved[1]


def test_which_attention_kernel_runs(llama_7b: Architecture, llama_3b: Architecture) -> None:
    def kind(arch: Architecture, masked: bool = False, **keys: Any) -> str:
        made = recipe(Stage.SFT, **keys)
        assert isinstance(made, TrainRecipe)
        return attention_kind(made, arch, precision_of(made, arch), masked=masked)

    assert kind(llama_7b, load_in_8bit=False) == "flash"
    assert kind(llama_7b, load_in_8bit=False, masked=True) == "efficient"
    assert kind(llama_7b) == "efficient"  # float32 activations
    assert kind(llama_3b) == "math"  # float32 and grouped heads
    assert kind(llama_3b, bf16=True) == "flash"
    assert kind(llama_3b, attn_implementation="eager") == "eager"


def test_approximate_estimate_says_why(llama_7b: Architecture) -> None:
    assert on_gpu(llama_7b, Stage.SFT).rough is None
    unknown = msgspec.structs.replace(llama_7b, rough="unknown architecture")
    assert on_gpu(unknown, Stage.SFT).rough == "unknown architecture"


def test_vllm_takes_its_share_of_the_card_while_it_samples(llama_7b: Architecture) -> None:
    keys = {"load_in_8bit": False, "dtype": "bfloat16", "use_vllm": True, "vllm_gpu_memory_utilization": 0.4}
    ours, theirs = recipe(Stage.PPO, **(keys | {"use_vllm": False})), recipe(Stage.PPO, **keys)
    card = 80 << 30
    before, found = (estimate(one, llama_7b, on_gpu=True, device_bytes=card) for one in (ours, theirs))
    rollout = {part.name: part.bytes for part in found.phases[0].components}
    assert rollout["vLLM's share"] == round(0.4 * card) and "kv cache" not in rollout
    assert before.phases[1:] == found.phases[1:]  # asleep it holds nothing that could be counted
    assert before.rough is None and "context, CUDA graphs" in (found.rough or "")
    assert "not known" in (estimate(theirs, llama_7b, on_gpu=True).rough or "")
    assert "too small for the weights" in (estimate(theirs, llama_7b, on_gpu=True, device_bytes=24 << 30).rough or "")


def test_the_demo_fits_any_machine() -> None:
    arch = read_architecture(DEMO_BASE)
    keys = {"load_in_8bit": False, "max_length": 256}
    found = estimate(recipe(Stage.SFT, **keys), arch, on_gpu=False)
    assert found.allocated < 700 << 20
    assert found.device[1] < 3 << 30


def test_an_estimate_is_json(llama_7b: Architecture) -> None:
    found = msgspec.json.decode(msgspec.json.encode(on_gpu(llama_7b, Stage.PPO)))
    wanted = {"phases", "peak", "components", "allocated", "reserved", "device", "rules", "rough", "unknown", "least"}
    assert wanted == set(found)
