"""Traces of small models: exact counts, exact extrapolation, agreement with the formula, and clear errors."""

import sys
from typing import Any

import pytest

from stackllama_engine.budget import tracing
from stackllama_engine.budget.estimate import estimate
from stackllama_engine.budget.shapes import architecture_of
from stackllama_engine.budget.trace.request import Request
from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.stages import Stage

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "num_hidden_layers": 7,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 1408,
    "vocab_size": 4000,
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}
PLAIN: dict[str, Any] = {"load_in_8bit": False, "dtype": "bfloat16"}
NF4: dict[str, Any] = {"load_in_8bit": False, "load_in_4bit": True}
INT8: dict[str, Any] = {"load_in_8bit": True}
BATCH: dict[str, Any] = {"per_device_train_batch_size": 4, "max_length": 512}
KEPT: dict[str, Any] = {"gradient_checkpointing": False}
ROLLOUT: dict[str, Any] = {
    "max_prompt_length": 128,
    "response_length": 15,
    "max_eval_samples": 8,
    "gradient_accumulation_steps": 2,
}


def request(stage: Stage, config: dict[str, Any] = SMALL, **keys: Any) -> Request:
    needed: dict[str, Any] = {"model_name_or_path": "m", "gradient_checkpointing": stage is Stage.SFT}
    needed |= {"reward_model_path": "a"} if stage is Stage.PPO else {}
    return Request(stage=stage, recipe=needed | keys, config=config)


GEMMA: dict[str, Any] = SMALL | {
    "model_type": "gemma2",
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "vocab_size": 40000,
    "tie_word_embeddings": True,
    "final_logit_softcapping": 30.0,
    "sliding_window": 64,
}
"""With a cap on the logits, and windows that a rollout leaves."""


@pytest.mark.slow
def test_formula_and_trace_agree_on_capped_logits() -> None:
    from stackllama_engine.budget.trace.measure import measure

    keys = PLAIN | ROLLOUT | {"per_device_train_batch_size": 2, "response_length": 39}
    asked = request(Stage.PPO, GEMMA, **keys)
    arch = architecture_of(GEMMA, "m", "config.json", frozenset())
    predicted = estimate(build_recipe(Stage.PPO, asked.recipe), arch, on_gpu=True)  # type: ignore[arg-type]
    traced = measure(asked)
    assert predicted.peak == traced.peak and predicted.allocated == pytest.approx(traced.allocated, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "keys"),
    [
        (Stage.SFT, PLAIN | BATCH),
        (Stage.SFT, PLAIN | BATCH | KEPT | {"use_peft": False}),
        (Stage.SFT, PLAIN | BATCH | {"lora_target_modules": ["q_proj", "v_proj"]}),
        (Stage.SFT, {"dtype": "float32", "load_in_8bit": False} | BATCH | {"bf16": True}),
        (Stage.SFT, INT8 | BATCH),
        (Stage.SFT, INT8 | BATCH | KEPT),
        (Stage.SFT, NF4 | BATCH | {"bf16": True, "use_bnb_nested_quant": True}),
        (Stage.REWARD, PLAIN | BATCH),
        (Stage.REWARD, PLAIN | BATCH | {"bf16": True}),
        (Stage.SFT, PLAIN | BATCH | KEPT | {"bf16": True, "lora_dropout": 0.0}),
        (Stage.PPO, PLAIN | ROLLOUT),
        (Stage.PPO, INT8 | ROLLOUT | {"bf16": True, "value_adapter": True}),
        pytest.param(
            Stage.PPO,
            PLAIN | ROLLOUT | {"advantage": "rloo", "num_generations": 2, "max_eval_samples": 1},
            marks=pytest.mark.long,
        ),
        pytest.param(Stage.PPO, INT8 | ROLLOUT | {"bf16": True, "value_adapter_layers": 2}, marks=pytest.mark.long),
    ],
)
def test_formula_and_trace_agree(stage: Stage, keys: dict[str, Any]) -> None:
    from stackllama_engine.budget.trace.measure import measure

    asked = request(stage, **keys)
    traced = measure(asked)
    arch = architecture_of(SMALL, "m", "config.json", frozenset())
    predicted = estimate(build_recipe(stage, asked.recipe), arch, on_gpu=True)  # type: ignore[arg-type]
    assert traced.allocated == max(traced.phases.values()) == traced.phases[traced.peak]
    assert predicted.allocated == pytest.approx(traced.allocated, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [PLAIN | BATCH, PLAIN | BATCH | {"use_peft": False}, INT8 | BATCH | KEPT])
def test_extrapolated_traces_equal_the_deep_one(keys: dict[str, Any]) -> None:
    from stackllama_engine.budget.trace.measure import measure

    asked = request(Stage.SFT, **keys)
    shallow, deep = measure(asked), measure(asked, extrapolate=False)
    assert shallow.peak == deep.peak
    for name, count in shallow.phases.items():
        assert count == deep.phases[name], name


@pytest.mark.slow
def test_int8_inputs_escape_checkpoints_that_are_not_reentrant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure why the stages use reentrant checkpointing for int8.

    bitsandbytes saves inputs that the other kind does not see, 2 · res · h + a · q + a · I bytes per token and layer.
    """
    from stackllama_engine.budget.trace import build
    from stackllama_engine.budget.trace.measure import measure

    asked = request(Stage.SFT, **INT8, **BATCH)
    reentrant = measure(asked).phases["loss"]

    def plainly(model: Any, recipe: Any) -> None:
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        model.enable_input_require_grads()

    monkeypatch.setattr(build, "checkpointing", plainly)
    leaked = measure(asked).phases["loss"] - reentrant
    hidden, inner, tokens, layers = 512, 1408, 4 * 512, 7
    assert leaked == pytest.approx(layers * tokens * 4 * (3 * hidden + inner), rel=0.02)


@pytest.mark.slow
def test_a_reward_model_of_its_own_may_be_of_another_depth() -> None:
    from stackllama_engine.budget.trace.measure import measure

    policy = SMALL | {"num_hidden_layers": 5}
    keys: dict[str, Any] = PLAIN | ROLLOUT | {"response_length": 3}
    sizes = [
        measure(
            Request(stage=Stage.PPO, recipe=request(Stage.PPO, **keys).recipe, config=policy, reward_model=reward_model)
        ).phases
        for reward_model in (SMALL | {"num_hidden_layers": 6}, SMALL | {"num_hidden_layers": 9})
    ]
    arch = architecture_of(SMALL, "m", "config.json", frozenset())
    one_layer = 2 * (arch.layer_linear + arch.norms)
    assert sizes[1]["optimizer step"] - sizes[0]["optimizer step"] == pytest.approx(3 * one_layer, rel=0.001)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "nonsense"}, "architecture `nonsense` is not part of transformers"),
        ({"model_type": "mamba", "state_size": 16}, "MambaConfig"),
    ],
)
def test_untraceable_model_is_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        tracing.ask(request(Stage.SFT, SMALL | changes, **PLAIN, **BATCH))
    assert "\n" not in str(raised.value)


def test_trace_times_out() -> None:
    with pytest.raises(UsageError, match="did not finish within"):
        tracing.ask(request(Stage.SFT, **PLAIN), timeout=0.01)


def test_invalid_reply_of_the_trace_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_MODULE", "this")
    with pytest.raises(UsageError, match="gave no valid reply"):
        tracing.ask(request(Stage.SFT, **PLAIN))


def test_trace_that_dies_without_output_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UsageError, match="no output"):
        tracing.ask(request(Stage.SFT, **PLAIN))
