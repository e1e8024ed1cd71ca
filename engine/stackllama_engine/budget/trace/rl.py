# pyright: basic
"""Trace of a PPO step of maximum length: sampling with a full cache, scoring, and optimizer steps before and after.

``train/ppo`` itself runs: the shared base, the log-probabilities, the losses. Only code that reads values from tensors
(which fake tensors do not have) is left out: choosing rows, early stopping, statistics.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ...contract.recipe import PPORecipe
from ...train import models, optimizers, right_padding
from ...train.ppo import upper_layers
from ...train.ppo.algorithm import Updater
from ...train.ppo.narrowed_adapter import narrowed
from ...train.ppo.packing import PackedBatch
from ...train.ppo.rollout import Advantages, Rollout
from ...train.ppo.sampling import pick
from ...train.ppo.shared_base import CRITIC, POLICY, REFERENCE, REWARD, Outputs, SharedBase
from ..inference import distinct_prompts
from ..shapes import architecture_of
from . import build, cuda, marks
from .storages import Storages

PREFILL = "prompts' forward pass"
SAMPLING = "sampling"
SCORE = "score"
_DECODED = 2
"""Number of tokens sampled with the cache at its longest."""


def trace(
    recipe: PPORecipe,
    config: dict[str, Any],
    reward_model: dict[str, Any] | None,
    layers: int,
    reward_layers: int,
    storages: Storages,
) -> None:
    """Fill ``storages.peaks`` with the phases of a second step.

    Args:
        recipe: the PPO recipe.
        config: configuration of the policy's base.
        reward_model: configuration of a separate reward model; None: an adapter on the base.
        layers: number of layers of the base.
        reward_layers: number of layers of the reward model.
        storages: records the phases.
    """
    with torch.device("meta"):
        base = _shared_base(
            recipe, config, layers, adapter_scores=reward_model is None and bool(recipe.reward_model_path)
        )
        other = build.base(reward_model, reward_layers, recipe, score=True, plain=True) if reward_model else None
    if other is not None:
        other.eval().requires_grad_(False)
    marks.mark_layers(base.model, storages)
    with storages.following():
        build.fake(base.model)
        build.fake(base.value_head)
        if other is not None:
            build.fake(other)
        optimizer = cuda.as_on_cuda(optimizers.build(recipe, base.trainable()))
        updater = Updater(recipe, base, optimizer, lambda one: one)
        storages.enter_phase(marks.FORWARD)
        _mini_batch(recipe, base, updater, optimizer, storages, *_rollout(recipe, base))
        storages.forget_peaks()
        _sample(recipe, base, storages)
        storages.enter_phase(SCORE)
        _score(recipe, base, other)
        _mini_batch(recipe, base, updater, optimizer, storages, *_rollout(recipe, base))


def _shared_base(recipe: PPORecipe, config: dict[str, Any], layers: int, *, adapter_scores: bool) -> SharedBase:
    """Build from a configuration what ``SharedBase`` builds from files."""
    model = build.base(config, layers, recipe)
    adapted: Any = models.add_lora(model, recipe, "CAUSAL_LM")
    base = SharedBase.__new__(SharedBase)
    base.model = adapted
    base.device = torch.device("cpu")
    base.temperature = recipe.temperature
    base.checkpointing = recipe.checkpointing
    base._entropy_trains = recipe.ent_coef > 0
    base._bf16 = recipe.bf16
    base.masks_padding = right_padding.keeps_mask(model, torch.device("cuda"), bf16=recipe.bf16)
    base.plain_head = not architecture_of(config, "", "", frozenset()).logit_steps
    base._continues = recipe.policy_adapter_path is not None
    base.value_head = nn.Linear(models.head_hidden(model), 1, bias=False, dtype=torch.float32)
    base.has_critic = recipe.has_critic
    base.has_separate_critic = recipe.has_separate_critic
    adapters = ((REFERENCE, base._continues), (REWARD, adapter_scores), (CRITIC, base.has_separate_critic))
    for name, wanted in adapters:
        if wanted:
            base.model.add_adapter(name, models.lora_config(recipe, "CAUSAL_LM", model.config.model_type))
    base._activate(POLICY)
    if base.has_separate_critic and (below := base._layers_below(recipe)):
        base.below_critic = below
        upper_layers.cut_adapter(base.model, base.layers, below, CRITIC)
    if recipe.checkpointing:
        build.checkpointing(model, recipe)
    base.model.eval()
    return base


def _lengths(recipe: PPORecipe) -> tuple[int, int]:
    """Return the lengths of the longest prompt and response; both limits are exclusive."""
    return max(1, recipe.max_prompt_length - 1), recipe.longest_response


def rows(recipe: PPORecipe) -> int:
    """Return the maximum number of responses sampled or scored per batch, in a step or an evaluation."""
    batch, held_out = recipe.local_rollout_forward_batch_size, recipe.max_eval_samples
    return min(batch, max(recipe.local_batch_size, batch if held_out is None else held_out))


def micro_batch(recipe: PPORecipe) -> int:
    """Return the number of responses of maximum length per micro-batch of the update."""
    if recipe.max_tokens_per_micro_batch is None:
        return recipe.micro_batch_size
    mini_batch = recipe.local_batch_size // recipe.num_mini_batches
    return min(mini_batch, recipe.max_tokens_per_micro_batch // sum(_lengths(recipe)))


@torch.no_grad()
def _sample(recipe: PPORecipe, base: SharedBase, storages: Storages) -> None:
    """Sample the prompt's first token, and the last tokens of a response of maximum length."""
    with narrowed(base.model, POLICY) if recipe.bf16 else nullcontext():
        _tokens(recipe, base, storages)


def _tokens(recipe: PPORecipe, base: SharedBase, storages: Storages) -> None:
    prompt, response = _lengths(recipe)
    count = rows(recipe)
    uniforms = torch.zeros(count, response, dtype=torch.float64)
    cache = DynamicCache(config=base.base.config)
    storages.enter_phase(PREFILL)
    distinct = distinct_prompts(recipe)
    tokens = _first_tokens(base, distinct, prompt, uniforms[:distinct, 0], cache)
    if distinct < count:  # several responses begin with the same prompt
        origins: Any = torch.zeros(count, dtype=torch.int64)
        cache.reorder_cache(origins)
        tokens = tokens[origins]
    longest = prompt + response - 1
    start = max(prompt, longest - _DECODED)
    layers: list[Any] = cache.layers
    for layer in layers:
        window = getattr(layer, "sliding_window", None)
        for name in ("keys", "values"):
            _lengthen(layer, name, min(start, window - 1) if window else start)
        if window:
            layer.cumulative_length = start  # from which the layer's mask is made
    storages.enter_phase(SAMPLING)
    mask = torch.ones(count, start, dtype=torch.int64)
    for position in range(start, longest):
        mask = torch.cat([mask, mask.new_ones(count, 1)], dim=1)
        hidden = base.hidden(tokens.unsqueeze(1), mask, mask.sum(1, keepdim=True) - 1, cache)
        tokens = pick(base.logits(hidden[:, -1]), uniforms[:, position - prompt])


def _first_tokens(base: SharedBase, count: int, prompt: int, uniforms: Tensor, cache: DynamicCache) -> Tensor:
    ids = torch.zeros(count, prompt, dtype=torch.int64)
    mask = torch.ones_like(ids)
    hidden = base.hidden(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), cache)
    return pick(base.logits(hidden[:, -1]), uniforms)


def _lengthen(layer: Any, name: str, tokens: int) -> None:
    """Lengthen a layer's keys or values to so many tokens."""
    shape, dtype = getattr(layer, name).shape, getattr(layer, name).dtype
    setattr(layer, name, None)
    setattr(layer, name, torch.empty(*shape[:2], tokens, shape[-1], dtype=dtype))


@torch.no_grad()
def _score(recipe: PPORecipe, base: SharedBase, reward_model: Any) -> None:
    """Run reward model, reference and policy, in pieces, over a step's or an evaluation's responses.

    Whichever of the two has more responses.
    """
    _, response = _lengths(recipe)
    size, update_size = rows(recipe), micro_batch(recipe)
    if recipe.max_tokens_per_micro_batch is not None:
        size = recipe.max_tokens_per_micro_batch // sum(_lengths(recipe))
    batch, _ = _rollout(recipe, base, max(size, recipe.local_batch_size))
    ids, attention = batch.input_ids, batch.attention_mask
    for piece, mask in zip(ids.split(size), attention.split(size), strict=True):
        _reward(base, reward_model, piece, mask)
    with base.reference():
        _outputs(base, ids, attention, response, size)
    _outputs(base, ids, attention, response, update_size, batch.lower)


def _outputs(
    base: SharedBase, ids: Tensor, attention: Tensor, response: int, size: int, lower: Tensor | None = None
) -> None:
    """Compute ``rollout.policy_outputs`` of rows that all have the maximum length."""
    parts = [
        base.outputs(ids[rows], attention[rows], response, lower=None if lower is None else lower[rows].clone())
        for rows in (slice(start, start + size) for start in range(0, len(ids), size))
    ]
    Outputs(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _reward(base: SharedBase, reward_model: Any, ids: Tensor, mask: Tensor) -> None:
    if reward_model is not None:
        masked = right_padding.keeps_mask(reward_model, torch.device("cuda"), bf16=False)
        reward_model(input_ids=ids, attention_mask=mask if masked else None)
        return
    if REWARD not in base.model.peft_config:  # the reward is a function
        return
    with base.adapter(REWARD):
        seen = mask if base.masks_padding else None
        base.hidden(ids, seen, torch.arange(ids.shape[1]).expand_as(ids))


def _rollout(recipe: PPORecipe, base: SharedBase, count: int | None = None) -> tuple[Rollout, Advantages]:
    """Allocate a step's rollout and its advantages, every row of maximum length."""
    prompt, response = _lengths(recipe)
    count = count or recipe.local_batch_size
    ids = torch.zeros(count, prompt + response, dtype=torch.int64)

    def column() -> Tensor:
        return torch.zeros(count, response)

    old = Outputs(column(), column(), column())
    rollout = Rollout(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mask=column(),
        texts=[],
        old=old,
        ref_logprobs=column(),
        scores=torch.zeros(count),
        lower=_lower(base, ids) if base.below_critic else None,
    )
    if recipe.has_critic:
        return rollout, Advantages(kl=column(), advantages=column(), returns=column())
    reference = rollout.ref_logprobs if recipe.kl_in_loss else None
    return rollout, Advantages(column(), column(), None, loss_mask=column(), ref_logprobs=reference)


def _lower(base: SharedBase, ids: Tensor) -> Tensor:
    """Allocate what a critic in the upper layers reads."""
    embedding: Any = base.base.get_input_embeddings()
    return torch.zeros(*ids.shape, base.base.config.get_text_config().hidden_size, dtype=embedding.weight.dtype)


def _mini_batch(
    recipe: PPORecipe,
    base: SharedBase,
    updater: Updater,
    optimizer: Any,
    storages: Storages,
    rollout: Rollout,
    advantages: Advantages,
) -> None:
    """Run one optimizer step of at most two micro-batches."""
    base.model.train(base.checkpointing)
    size = micro_batch(recipe)
    count = -(-recipe.local_batch_size // recipe.num_mini_batches // size)
    for index in range(min(2, count)):
        storages.enter_phase(marks.FORWARD)
        indices = torch.arange(index * size, (index + 1) * size)
        _backward(updater, rollout, advantages, indices)
    storages.enter_phase(marks.STEP)
    updater.gradients.sum_over_ranks()
    nn.utils.clip_grad_norm_(base.trainable(), recipe.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    base.model.eval()


def _backward(updater: Updater, rollout: Rollout, advantages: Advantages, indices: Tensor) -> None:
    batch = PackedBatch(indices, rollout.input_ids.shape[1] - rollout.responses, rollout.responses)
    updater._micro_batch(rollout, advantages, batch, rollout.mask[indices].sum())
