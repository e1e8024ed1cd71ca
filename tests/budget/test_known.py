"""Exactly counted model types; for all others the verdict is unknown and the lower bound is true."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stackllama_engine.budget import known
from stackllama_engine.budget.architecture import Architecture
from stackllama_engine.budget.estimate import Estimate, estimate, estimate_sharded
from stackllama_engine.budget.fit import at_least, fits, suggestions
from stackllama_engine.budget.model_files import read_architecture
from stackllama_engine.budget.shapes import architecture_of
from stackllama_engine.budget.sharding import Sharding
from stackllama_engine.contract.recipe import PPORecipe
from stackllama_engine.contract.stages import TRAINING_STAGES, Stage

from .conftest import LLAMA_7B
from .test_estimate import recipe

GIB = 1 << 30
EVERYTHING = 1 << 60
# published configurations, the keys that matter
DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "vocab_size": 129280,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
QWEN3_30B: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "vocab_size": 151936,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}


def shape(config: Mapping[str, Any]) -> Architecture:
    return architecture_of(config, "m", "config.json", frozenset())


def verdict(arch: Architecture, stage: Stage = Stage.SFT, **keys: Any) -> tuple[Estimate, str]:
    found = estimate(recipe(stage, **keys), arch, on_gpu=True)
    return found, fits(found, EVERYTHING)


def test_deepseek_v3_never_fits_though_it_looks_like_a_llama() -> None:
    found, said = verdict(shape(DEEPSEEK_V3))
    assert said == "unknown" and "`deepseek_v3` is not known" in (found.unknown or "")
    assert 600 * GIB < found.least < 671e9  # a byte for each of its 671 billion, and none that it has not
    assert at_least(found, 80 * GIB) == f"at least {found.least / GIB:.1f} GiB, which is more than there is"
    assert at_least(found, EVERYTHING) == f"at least {found.least / GIB:.1f} GiB"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"kv_lora_rank": 512, "q_lora_rank": 1536}, "`kv_lora_rank`, `q_lora_rank`"),
        ({"n_routed_experts": 64}, "`n_routed_experts`"),
        ({"num_local_experts": 8}, "`num_local_experts`"),
        ({"vision_config": {"hidden_size": 1024}}, "`vision_config`"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "`layer_types`"),
        ({"use_memory_layers": True}, "`use_memory_layers`"),
        ({"a": 2, "b": 2, "c": 2, "d": 2, "e": 2, "f": 2}, "`d` and 2 more"),
    ],
)
def test_a_key_that_may_be_a_size_makes_a_known_type_unknown(more: dict[str, Any], named: str) -> None:
    found, said = verdict(shape({**LLAMA_7B, **more}))
    assert said == "unknown" and named in (found.unknown or "")
    assert 0 < found.least < 6_738_415_616


def test_keys_that_scale_name_or_switch_off_keep_a_type_known() -> None:
    more = {
        "rope_theta": 10000,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "pretraining_tp": 1,
        "bos_token_id": 1,
        "eos_token_id": [1, 2],
        "auto_map": {"AutoModel": "x"},
        "unsloth_fixed": True,
        "_name_or_path": "x",
        "moe_layers": [],
        "use_mla": False,
        "attention_multiplier": 0.5,
        "layer_types": ["full_attention", "sliding_attention"],
        "id2label": {"0": "LABEL_0"},
    }
    assert verdict(shape({**LLAMA_7B, **more}))[1] == "yes"


@pytest.mark.parametrize(
    ("config", "bits", "least"),
    [
        (MIXTRAL, {"load_in_8bit": True}, 170),
        (MIXTRAL, {"load_in_8bit": False, "load_in_4bit": True}, 169),
        (QWEN3_30B, {"load_in_8bit": True}, 111),
    ],
)
def test_experts_are_not_quantised(config: dict[str, Any], bits: dict[str, Any], least: int) -> None:
    found, said = verdict(shape(config), **bits)
    assert said == "unknown"
    assert "`base_precision: bf16`" in (found.unknown or "")
    assert least <= found.least / GIB < least + 1  # experts in float32, which k-bit preparation makes of them
    assert verdict(shape(config), load_in_8bit=False)[1] == "yes"


def test_lora_adapts_no_expert() -> None:
    arch = shape(MIXTRAL)
    assert [one.name for one in arch.adaptable] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    every = estimate(recipe(Stage.SFT, load_in_8bit=False, lora_target_modules="all-linear"), arch, on_gpu=True)
    adapter = next(one.bytes for one in every.components if one.name == "adapter")
    assert adapter == 4 * 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024))


def test_sharded_full_training_is_unknown(llama_7b: Architecture) -> None:
    every: Any = recipe(Stage.SFT, use_peft=False, load_in_8bit=False, dtype="bfloat16")
    for kind, part in (("fsdp", 8), ("zero3", 8), ("zero2", 16 / 9)):
        found = estimate_sharded(every, llama_7b, Sharding(kind=kind, ranks=8))  # type: ignore[arg-type]
        assert fits(found, EVERYTHING) == "unknown" and kind in (found.unknown or "")
        assert 0 < found.least <= found.allocated
        assert found.least >= 2 * llama_7b.parameters / part
    lora: Any = recipe(Stage.SFT, load_in_8bit=False, dtype="bfloat16")
    assert fits(estimate_sharded(lora, llama_7b, Sharding(kind="fsdp", ranks=8)), EVERYTHING) == "yes"


@pytest.mark.parametrize("stage", (*TRAINING_STAGES, Stage.MERGE))
@pytest.mark.parametrize("full", [False, True])
def test_what_is_certain_is_never_more_than_a_known_model_of_the_sizes_takes(
    llama_7b: Architecture, stage: Stage, full: bool
) -> None:
    """The bound of an unknown model against the estimate of the known one that it is."""
    if stage in (Stage.PREFERENCE, Stage.PPO, Stage.MERGE) and full:
        return
    keys: dict[str, Any] = {"use_peft": False, "load_in_8bit": False} if full else {}
    truth = estimate(recipe(stage, **keys), llama_7b, on_gpu=True)
    found, said = verdict(msgspec.structs.replace(llama_7b, unknown="x"), stage, **keys)
    assert said == "unknown" and 0 < found.least <= truth.allocated


def test_an_unknown_reward_model_makes_ppo_unknown(llama_7b: Architecture) -> None:
    asked = recipe(Stage.PPO, reward_model_path="/rm")
    assert isinstance(asked, PPORecipe)
    found = estimate(asked, llama_7b, on_gpu=True, reward=shape({**LLAMA_7B, "model_type": "newest"}))
    assert fits(found, EVERYTHING) == "unknown" and "reward model: architecture `newest`" in (found.unknown or "")
    assert found.least > 6.7e9


def test_no_suggestion_comes_from_what_is_unknown() -> None:
    assert suggestions(recipe(Stage.SFT), shape(MIXTRAL), 24 * GIB) == []
    made = suggestions(recipe(Stage.SFT, load_in_8bit=False, dtype="bfloat16"), shape(MIXTRAL), 24 * GIB)
    assert made and not [one for one in made if "base_precision" in one.changes]


def test_a_checkpoint_that_is_quantised_already_is_unknown(tmp_path: Path) -> None:
    for method, width in (
        ({"quant_method": "fp8"}, 1.0),
        ({"quant_method": "gptq", "bits": 4}, 0.5),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 0.5),
        ({"quant_method": "newest"}, 0.2),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**LLAMA_7B, "quantization_config": method}))
        found, said = verdict(read_architecture(tmp_path))
        assert said == "unknown" and str(method["quant_method"]) in (found.unknown or "")
        assert found.least == int(width * 6_738_415_616)


def test_the_larger_of_files_and_sizes_is_used(tmp_path: Path, write_safetensors: Callable[..., Path]) -> None:
    small = {
        **LLAMA_7B,
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps(small))
    counted = shape(small).parameters
    for held, believed in ((2 * counted, 2 * counted), (counted // 2, counted)):
        write_safetensors(tmp_path / "model.safetensors", {"model.embed_tokens.weight": [held]})
        found = read_architecture(tmp_path)
        assert found.parameters == believed and f"its files have {held:,}" in (found.unknown or "")


@pytest.mark.parametrize("metadata", [{"total_size": 4 * 9_000_000_000}, {"total_parameters": 18_000_000_000}])
def test_an_index_alone_says_how_much_there_is(tmp_path: Path, metadata: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_7B))
    index = {"metadata": metadata, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = read_architecture(tmp_path)
    assert found.parameters == 18_000_000_000 and found.unknown and "weight files are missing" in (found.rough or "")


def test_every_known_type_is_counted_beside_transformers() -> None:
    from .test_architecture import COUNTED

    assert {one[0] for one in COUNTED} == known.TYPES


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 24}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {"attention_bias": True}),
    ("gemma", {"attention_bias": True}),
    ("gemma2", {"attention_bias": True}),
    ("gemma3_text", {"attention_bias": True}),
    ("granite", {"attention_bias": True, "mlp_bias": True}),
    ("olmo", {"attention_bias": True}),
    ("smollm3", {"attention_bias": True, "mlp_bias": True}),
    ("stablelm", {"use_qkv_bias": True}),
    ("gpt_neox", {"attention_bias": False, "tie_word_embeddings": True}),
    ("qwen3_moe", {"attention_bias": True}),
    ("gpt2", {"n_inner": 96}),
]


@pytest.mark.long
def test_known_types_are_counted_as_transformers_counts_them() -> None:
    """At their classes' own sizes, and with every key that this engine claims to understand."""
    for model_type, more in [*((one, {}) for one in sorted(known.TYPES)), *VARIANTS]:
        config, elements = _real(model_type, more)
        found = shape(config)
        assert (found.unknown, found.parameters) == (None, elements), (model_type, more)


@pytest.mark.long
def test_what_is_certain_is_true_of_every_language_model_of_transformers() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    compared = 0
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config, elements = _real(model_type, {})
            found = shape(config)
        except Exception:  # noqa: BLE001 - no model of the class's own sizes, or none with sizes that a budget reads
            continue
        compared += 1
        assert found.parameters <= elements or not found.unknown, model_type
    assert compared > 120


def _real(model_type: str, more: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return a configuration as saved, and the parameters of transformers' model of it, on ``meta``."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type](**more)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return json.loads(config.to_json_string(use_diff=False)), sum(one.numel() for one in model.parameters())
