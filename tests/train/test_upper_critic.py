"""A critic whose adapter is in the upper layers alone, on states kept from scoring: the same values, cheaper."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    OPTConfig,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from stackllama_engine.contract.errors import RecipeError, StageError
from stackllama_engine.contract.prompt_format import PromptFormat
from stackllama_engine.train import models
from stackllama_engine.train.ppo import upper_layers
from stackllama_engine.train.ppo.rollout import LowerStates, Rollout, lower_states, policy_outputs
from stackllama_engine.train.ppo.shared_base import CRITIC, POLICY, VALUE_FILE, SharedBase

from .test_model_checks import checked, saved
from .toy import make_reward_model, ppo_recipe
from .update_kit import CPU, Toy, toy

UPPER = ("value_adapter=true", "value_adapter_layers=2")
LAYERS = 3


@pytest.fixture(scope="module")
def deep(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a Llama of three layers with the toy's tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return saved(base, tmp_path_factory.mktemp("deep"), LlamaForCausalLM(config))


def critic_layers(shared: SharedBase) -> set[int]:
    names = [name for name, _ in shared.model.named_parameters() if f".{CRITIC}." in name]
    return {int(name.split(".layers.")[1].split(".")[0]) for name in names}


def whole(one: Toy) -> Toy:
    """Let the critic's passes begin with the token ids."""
    one.base.below_critic = 0
    one.rollout = replace(one.rollout, lower=None)
    return one


def values(one: Toy, size: int = 4) -> Tensor:
    """Values of response tokens; those behind a response mean nothing."""
    rollout = one.rollout
    ids = rollout.input_ids, rollout.attention_mask, rollout.responses
    return policy_outputs(one.base, *ids, size, lower=rollout.lower).values * rollout.mask


def test_with_all_layers_nothing_changes(deep: Path) -> None:
    plain, all_of_them = (
        toy(deep, "value_adapter=true"),
        toy(deep, "value_adapter=true", f"value_adapter_layers={LAYERS}"),
    )
    assert all_of_them.rollout.lower is None
    assert torch.equal(values(all_of_them), values(plain)) and values(plain).any()
    for one in (plain, all_of_them):
        one.update(one.advantages())
    assert torch.equal(plain.gradients[0], all_of_them.gradients[0])


@pytest.mark.parametrize(("given", "covered"), [("1", {2}), ("2", {1, 2}), ("0.3", {2}), ("0.34", {1, 2})])
def test_the_adapter_is_in_the_upper_layers_alone(deep: Path, given: str, covered: set[int]) -> None:
    shared = SharedBase(ppo_recipe(deep, "value_adapter=true", f"value_adapter_layers={given}"), CPU)
    assert critic_layers(shared) == covered and shared.below_critic == LAYERS - len(covered)
    asked = {id(p) for p in (*shared.model.parameters(), *shared.value_head.parameters()) if p.requires_grad}
    assert {id(p) for p in shared.trainable()} == asked
    assert len(shared.parameter_groups()[1]) == 14 * len(covered) + 1  # A and B of seven matrices, and the head


CHECKPOINTING = ("gradient_checkpointing=true",)


@pytest.mark.parametrize(
    ("keys", "masks"),
    [
        ((), True),
        (("value_adapter_layers=1", "per_device_train_batch_size=2", "gradient_accumulation_steps=2"), False),
        (("per_device_train_batch_size=1", "gradient_accumulation_steps=4"), False),  # no row is padded
        (("max_prompt_length=5", "random_length_limits=[4, 5]", "max_tokens_per_micro_batch=8"), False),
        (CHECKPOINTING, False),
    ],
)
def test_an_update_is_that_of_passes_through_all_layers(deep: Path, keys: tuple[str, ...], masks: bool) -> None:
    """In float32, where kept states differ by rounding only if their micro-batches had other shapes."""
    upper, full = toy(deep, *UPPER, *keys, masks=masks), whole(toy(deep, *UPPER, *keys, masks=masks))
    assert upper.rollout.lower is not None
    torch.testing.assert_close(values(upper), values(full), atol=1e-5, rtol=1e-5)
    stats = [one.update(one.advantages()).metrics() for one in (upper, full)]
    assert stats[0] == pytest.approx(stats[1], rel=1e-4, abs=1e-6) and stats[0]["val/ratio_first"] == 1.0
    critic = sum(p.numel() for p in upper.base.parameter_groups()[1])
    assert upper.gradients[0][-critic:].any()
    assert torch.equal(upper.gradients[0][:-critic], full.gradients[0][:-critic])  # the policy's
    torch.testing.assert_close(upper.gradients[0], full.gradients[0], atol=1e-5, rtol=1e-4)


def test_reentrant_checkpointing_as_of_int8_computes_the_same_gradients(deep: Path) -> None:
    kept, again = toy(deep, *UPPER), toy(deep, *UPPER, *CHECKPOINTING)
    again.base.base.gradient_checkpointing_enable({"use_reentrant": True})
    for one in (kept, again):
        one.update(one.advantages())
    torch.testing.assert_close(again.gradients[0], kept.gradients[0], atol=1e-6, rtol=1e-5)


def test_values_are_those_of_a_critic_whose_lower_layers_have_an_adapter_of_zeros(deep: Path) -> None:
    upper, everywhere = toy(deep, *UPPER), toy(deep, "value_adapter=true")
    own = dict(upper.base.model.named_parameters())
    for name, parameter in everywhere.base.model.named_parameters():
        if name in own:
            parameter.data.copy_(own[name].data)
        elif "lora_B" in name:
            parameter.data.zero_()
    everywhere.base.value_head.load_state_dict(upper.base.value_head.state_dict())
    torch.testing.assert_close(values(upper), values(everywhere), atol=1e-5, rtol=1e-5)
    assert values(upper).any()


def test_the_first_epoch_computes_the_recorded_values_again(deep: Path) -> None:
    """Scoring and update see the same states in the same micro-batches: the same values, bit for bit."""
    one = toy(deep, *UPPER, "per_device_train_batch_size=2", "gradient_accumulation_steps=2")
    rollout = one.rollout
    ids = rollout.input_ids, rollout.attention_mask, rollout.responses
    assert rollout.lower is not None
    for batch in rollout.lengths.packed(range(4), 2, CPU):
        part = rollout.select(batch)
        assert part.lower is not None and part.lower.shape[1] == batch.tokens
        with one.base.adapter(CRITIC):
            again = one.base.values(
                part.input_ids, part.attention_mask, batch.response, width=batch.width, lower=part.lower
            )
        assert torch.equal(again * part.mask, part.old.values * part.mask)
    assert ids[0].shape[1] >= rollout.lower.shape[1]


def kept_by_reference(shared: SharedBase, rollout: Rollout, size: int = 2) -> Tensor:
    kept = LowerStates(*rollout.input_ids.shape)
    with shared.reference():
        policy_outputs(shared, rollout.input_ids, rollout.attention_mask, rollout.responses, size, keep=kept)
    assert kept.states is not None
    return kept.states


def of_tokens(rollout: Rollout, states: Tensor) -> Tensor:
    """States of tokens, 0 where there is none."""
    present = torch.arange(states.shape[1]) < rollout.attention_mask.sum(1, keepdim=True)
    return states * present.unsqueeze(-1)


def test_the_reference_pass_keeps_what_the_frozen_layers_compute(deep: Path) -> None:
    """Row by row, by transformers alone."""
    one = toy(deep, *UPPER)
    rollout = one.rollout
    plain: Any = AutoModelForCausalLM.from_pretrained(deep).eval()
    for states in (kept_by_reference(one.base, rollout), rollout.lower):
        assert states is not None
        for row, (ids, mask) in enumerate(zip(rollout.input_ids, rollout.attention_mask, strict=True)):
            text = ids[mask.bool()].unsqueeze(0)
            with torch.no_grad():
                expected = plain(text, output_hidden_states=True).hidden_states[LAYERS - 2][0]
            torch.testing.assert_close(states[row, : len(expected)], expected, atol=1e-5, rtol=1e-5)
    assert len(one.base.layers) == LAYERS and all(type(layer) is LlamaDecoderLayer for layer in one.base.layers)


def save(one: Toy, path: Path) -> None:
    head: dict[str, Any] = {VALUE_FILE: dict(one.base.value_head.state_dict())}
    tokenizer = models.load_tokenizer(one.recipe.model_name_or_path)
    models.save_adapter(one.base.model, tokenizer, path, one.recipe, PromptFormat(), one.base.saved, **head)


def test_a_continued_critic_keeps_its_layers_and_reads_the_base_below_them(deep: Path, tmp_path: Path) -> None:
    """Its reference has an adapter in every layer, which the critic never had."""
    one = toy(deep, *UPPER)
    save(one, tmp_path / "adapter")
    for layers, below in (("2", 1), ("1", 1), ("", 0)):
        keys = (f"policy_adapter_path={tmp_path / 'adapter'}", f"value_adapter_layers={layers}")
        shared = SharedBase(ppo_recipe(deep, *keys), CPU)
        assert critic_layers(shared) == {1, 2} and shared.below_critic == below
        rollout = one.rollout
        ids = rollout.input_ids, rollout.attention_mask, rollout.responses
        lower = lower_states(shared, *ids, 2) if below else None
        if lower is not None:
            torch.testing.assert_close(
                of_tokens(rollout, lower), of_tokens(rollout, kept_by_reference(one.base, rollout))
            )
        found = policy_outputs(shared, *ids, 4, lower=lower)
        torch.testing.assert_close(found.values * rollout.mask, values(one), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.logprobs, policy_outputs(one.base, *ids, 4, lower=rollout.lower).logprobs)


def test_a_critic_begins_as_the_reward_models_upper_layers(deep: Path, tmp_path: Path) -> None:
    reward = make_reward_model(deep, tmp_path / "reward")
    shared = SharedBase(ppo_recipe(deep, f"reward_model_path={reward}", "value_adapter_layers=1"), CPU)
    state = models.adapter_weights(reward)
    critic = shared.policy_state(CRITIC)
    assert critic_layers(shared) == {2} and len(critic) == 14
    assert all(torch.equal(weight, state[name]) for name, weight in critic.items())
    assert torch.equal(shared.value_head.weight, next(v for k, v in state.items() if k.endswith("score.weight")))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("value_adapter_layers=4",), "has 3 layers"),
        (("value_adapter_layers=1", r"lora_target_modules=.*layers\.[01]\..*(q|v)_proj"), "LoRA changes none of the 1"),
    ],
)
def test_layers_that_are_not_there_are_refused(deep: Path, keys: tuple[str, ...], words: str) -> None:
    with pytest.raises(StageError, match=words):
        SharedBase(ppo_recipe(deep, *keys), CPU)


def test_layers_in_no_list_are_refused(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upper_layers, "layers_of", lambda *_: None)
    with pytest.raises(StageError, match="are in no list"):
        SharedBase(ppo_recipe(deep, *UPPER), CPU)
    assert SharedBase(ppo_recipe(deep), CPU).below_critic == 0


@pytest.mark.parametrize("key", ["value_adapter_layers=0", "value_adapter_layers=1.5", "value_adapter_layers=-1"])
def test_numbers_of_layers_are_whole_or_shares(deep: Path, key: str) -> None:
    with pytest.raises(RecipeError, match="value_adapter_layers"):
        ppo_recipe(deep, key)
    with pytest.raises(RecipeError, match="needs `value_adapter: true`"):
        ppo_recipe(deep, "value_adapter=false", "value_adapter_layers=2")


TINY: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "vocab_size": 400, "initializer_range": 0.3}


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**TINY, intermediate_size=48, num_key_value_heads=2, head_dim=8, sliding_window=4),
        GPT2Config(**GPT2),
        OPTConfig(**TINY, ffn_dim=48, word_embed_proj_dim=32),
        MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=3, state_size=4, initializer_range=0.3),
    ],
    ids=lambda config: config.model_type,
)
@torch.no_grad()
def test_upper_layers_compute_alone_what_they_do_in_each_family(config: Any) -> None:
    """Scaled embeddings, windows, learned positions, recurrent layers."""
    torch.manual_seed(0)
    trunk: Any = AutoModelForCausalLM.from_config(config).eval().get_decoder()
    layers = upper_layers.layers_of(trunk, 3)
    assert layers is not None
    ids = torch.tensor([[1, 5, 6, 7, 8, 9, 11, 3], [1, 3, 4, 9, 11, 12, 0, 0]])
    named: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if config.model_type != "mamba":
        named["position_ids"] = torch.arange(8).expand(2, -1)
    kept: list[Tensor] = []
    with upper_layers.keeping(layers, 2, kept.append):
        whole = trunk(**named).last_hidden_state
    with upper_layers.without_upper(layers, 2), upper_layers.keeping(layers, 2, kept.append):
        trunk(**named)
    assert torch.equal(*kept)
    with upper_layers.without_lower(layers, 2, kept[0]):
        assert torch.equal(trunk(**named).last_hidden_state, whole)
    assert torch.equal(trunk(**named).last_hidden_state, whole)  # all layers are back


def test_a_family_that_cannot_begin_there_runs_whole_and_says_so(base: Path, deep: Path, tmp_path: Path) -> None:
    """Bloom's layers return tuples, which the states in their place are not."""
    recipe = ppo_recipe(deep, *UPPER)
    shared = SharedBase(recipe, CPU)
    assert checked(recipe, shared) == [] and shared.below_critic == 1
    config = BloomConfig(vocab_size=400, hidden_size=32, n_layer=3, n_head=4, initializer_range=0.3)
    recipe = ppo_recipe(saved(base, tmp_path / "bloom", BloomForCausalLM(config)), *UPPER)
    shared = SharedBase(recipe, CPU)
    notices = [notice for notice in checked(recipe, shared) if "critic" in notice]
    assert len(notices) == 1 and "the critic runs through all layers" in notices[0] and "bloom fails" in notices[0]
    assert shared.below_critic == 0 and len(shared.parameter_groups()[1]) == 2 * 4 * 2 + 1


def test_policy_and_reference_are_untouched(deep: Path) -> None:
    plain, upper = toy(deep, "value_adapter=true"), toy(deep, *UPPER)
    sizes = [len(one.base.parameter_groups()[0]) for one in (plain, upper)]
    assert sizes[0] == sizes[1] and upper.base.saved == (POLICY, CRITIC)
    assert torch.equal(upper.rollout.old.logprobs, plain.rollout.old.logprobs)
    assert torch.equal(upper.rollout.ref_logprobs, plain.rollout.ref_logprobs)
