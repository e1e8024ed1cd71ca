"""More work never takes less memory, whatever the recipe and the model."""

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from stackllama_engine.budget.architecture import Architecture
from stackllama_engine.budget.estimate import estimate
from stackllama_engine.budget.shapes import architecture_of
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.stages import Stage

from .test_estimate import NEEDED

_SIZED = {
    Stage.SFT: ("per_device_train_batch_size", "max_length", "lora_r"),
    Stage.REWARD: ("per_device_train_batch_size", "max_length", "lora_r"),
    Stage.PREFERENCE: ("per_device_train_batch_size", "max_length", "lora_r"),
    Stage.PPO: (
        "per_device_train_batch_size",
        "max_prompt_length",
        "response_length",
        "lora_r",
        "local_rollout_forward_batch_size",
        "gradient_accumulation_steps",
        "num_mini_batches",
    ),
}

_FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi", "phi3", "gpt_neox", "gpt2")
_TILE = 16
"""Tokens: where a length is no multiple of it, attention on a CPU copies its mask into rows that are, and a token more
may take less."""
_RANGES = {"lora_r": (1, 256), "max_length": (8, 8192), "max_prompt_length": (1, 2048), "response_length": (40, 512)}


@st.composite
def models(draw: st.DrawFn, layers: int | None = None) -> dict[str, Any]:
    heads = draw(st.sampled_from([1, 4, 12, 32]))
    size = draw(st.sampled_from([8, 64, 128]))
    family = draw(st.sampled_from(_FAMILIES))
    grouped = draw(st.sampled_from([1, heads])) if family not in ("gpt_neox", "gpt2") else heads
    return {
        "model_type": family,
        "hidden_size": heads * size,
        "num_hidden_layers": layers or draw(st.integers(1, 80)),
        "num_attention_heads": heads,
        "num_key_value_heads": grouped,
        "head_dim": size,
        "intermediate_size": draw(st.integers(8, 30_000)),
        "vocab_size": draw(st.integers(100, 300_000)),
        "tie_word_embeddings": draw(st.booleans()),
        "dtype": draw(st.sampled_from(["float32", "bfloat16"])),
    }


@st.composite
def recipes(draw: st.DrawFn) -> tuple[Stage, dict[str, Any]]:
    stage = draw(st.sampled_from(list(_SIZED)))
    quant = draw(st.sampled_from(["none", "8", "4"]))
    peft = stage in (Stage.PREFERENCE, Stage.PPO) or quant != "none" or draw(st.booleans())
    keys: dict[str, Any] = {
        "load_in_8bit": quant == "8",
        "load_in_4bit": quant == "4",
        "use_peft": peft,
        "bf16": draw(st.booleans()),
        "gradient_checkpointing": draw(st.booleans()),
        "dtype": draw(st.sampled_from(["auto", "float32", "bfloat16"])),
        "lora_target_modules": draw(st.sampled_from([None, "all-linear"])),
        "gradient_accumulation_steps": draw(st.integers(1, 8)),
        "attn_implementation": draw(st.sampled_from([None, "eager"])),
    }
    for key in _SIZED[stage]:
        keys[key] = draw(st.integers(*_RANGES.get(key, (1, 32))))
    return stage, NEEDED[stage] | keys


def _arch(config: dict[str, Any]) -> Architecture:
    return architecture_of(config, "m", "config.json", frozenset())


def _peak(stage: Stage, keys: dict[str, Any], arch: Architecture, gpu: bool, gpus: int = 1) -> int:
    found = estimate(build_recipe(stage, keys), arch, gpus=gpus, on_gpu=gpu)  # type: ignore[arg-type]
    assert sum(one.bytes for one in found.components) == found.allocated
    assert all(one.bytes > 0 for phase in found.phases for one in phase.components)
    return found.allocated


@settings(max_examples=150, deadline=None)
@given(models(), recipes(), st.integers(1, 3), st.booleans(), st.data())
def test_more_work_never_takes_less(
    config: dict[str, Any], made: tuple[Stage, dict[str, Any]], factor: int, gpu: bool, data: st.DataObject
) -> None:
    stage, keys = made
    key = data.draw(st.sampled_from(_SIZED[stage]))
    arch = _arch(config)
    keys |= {name: -(-keys[name] // _TILE) * _TILE for name in keys if name.endswith("_length")}
    step = _TILE if key.endswith("_length") else 1
    more = keys | {key: keys[key] * factor + step * data.draw(st.integers(0, 3))}
    assert _peak(stage, keys, arch, gpu) <= _peak(stage, more, arch, gpu)


@settings(max_examples=100, deadline=None)
@given(models(), recipes(), st.integers(1, 40), st.booleans())
def test_more_layers_never_take_less(
    config: dict[str, Any], made: tuple[Stage, dict[str, Any]], more: int, gpu: bool
) -> None:
    deeper = config | {"num_hidden_layers": config["num_hidden_layers"] + more}
    assert _peak(*made, _arch(config), gpu) <= _peak(*made, _arch(deeper), gpu)


@settings(max_examples=50, deadline=None)
@given(models(), recipes())
def test_a_second_gpu_never_takes_less_of_the_first(config: dict[str, Any], made: tuple[Stage, dict[str, Any]]) -> None:
    assert _peak(*made, _arch(config), True) <= _peak(*made, _arch(config), True, gpus=2)


@settings(max_examples=50, deadline=None)
@given(models())
def test_sizes_are_consistent(config: dict[str, Any]) -> None:
    arch = _arch(config)
    assert arch.parameters == arch.linear + arch.other
    assert msgspec.json.decode(msgspec.json.encode(arch), type=Architecture) == arch
