"""Phases of a PPO step without gradients: sampling with a key-value cache, and scoring.

Shapes: B responses per batch, P prompt, R response, V vocabulary.
"""

from msgspec import Struct

from ..contract.recipe import PPORecipe
from . import activations, lm_head
from .activations import LayerMode
from .architecture import Architecture
from .parts import Component, PhaseEstimate, phase

ROOM_TILE = 16
"""Tokens, a multiple of which a GPU's cache has room for; as in ``train/ppo/static_decoder.py``."""


class Resident(Struct, frozen=True, kw_only=True):
    """Memory that stays allocated through all of PPO, in bytes."""

    base_weights: int
    adapter: int
    """Adapters of policy and critic, value head, and a frozen copy of a continued policy."""
    reward_model: int
    optimizer: int
    narrowed: int = 0
    """16-bit copies of the adapter's float32 weights, which autocast keeps while it is active."""
    rollout_record: int
    """Ids, masks, log-probabilities, values and advantages of all responses of a step."""


def distinct_prompts(recipe: PPORecipe) -> int:
    """Return the maximum number of different prompts per batch that is sampled, in a step or an evaluation.

    A prompt that several responses begin with is read once. A batch may begin and end inside a group of these; in an
    evaluation all prompts are different.
    """
    batch, size, held_out = recipe.local_rollout_forward_batch_size, recipe.group_size, recipe.max_eval_samples
    rows = min(batch, recipe.local_batch_size)
    trained = min(rows, (rows + size - 2) // size + 1, recipe.local_batch_size // size)
    return max(trained, batch if held_out is None else min(batch, held_out))


def kv_cache(arch: Architecture, mode: LayerMode, rows: int, tokens: int) -> int:
    """Return the keys and values of every layer; rotated keys have the residual stream's dtype, values a linear's."""
    wide = max(mode.precision.compute, mode.precision.residual) + mode.precision.compute
    return arch.layers * arch.kv * wide * rows * tokens


def rollout(
    arch: Architecture,
    mode: LayerMode,
    resident: Resident,
    rows: int,
    prompt: int,
    response: int,
    *,
    prompts: int,
    on_gpu: bool,
) -> PhaseEstimate:
    """Return the sampling phase: the longest cache and one decoding step, or the prompt's forward pass.

    A decoding step holds one layer's keys twice, while finished rows leave (or, in layers with a sliding window, while
    they grow by one token), or the next token's distribution. The adapter's 16-bit copies are kept from the first token
    to the last. On a GPU there is room for whole tiles of tokens (``train/ppo/static_decoder.py``). There are fewer
    ``prompts`` than ``rows`` where several responses begin with the same one.
    """
    room = -(-(prompt + response) // ROOM_TILE) * ROOM_TILE if on_gpu else prompt + response
    cache = kv_cache(arch, mode, rows, room)
    doubled = arch.kv * max(mode.precision.compute, mode.precision.residual) * rows * room
    logits = lm_head.sampling(arch, mode.precision, rows)
    last = resident.narrowed + max(logits, doubled) + activations.forward_transient(arch, mode, rows)
    unfilled = kv_cache(arch, mode, prompts, response) + kv_cache(arch, mode, rows - prompts, prompt + response)
    prefill = activations.forward_transient(arch, mode, prompts * prompt) - unfilled
    return phase(
        "rollout",
        **_components(resident, record=False),
        kv_cache=cache,
        temporaries=max(last, prefill + resident.narrowed),
    )


def vllm_rollout(resident: Resident, share: int) -> PhaseEstimate:
    """Return the sampling phase with vLLM, which keeps weights and cache in a fixed share of the card."""
    ours = phase("rollout", **_components(resident, record=False))
    return PhaseEstimate("rollout", (*ours.components, Component("vLLM's share", share)))


def score(
    arch: Architecture,
    mode: LayerMode,
    resident: Resident,
    rows: int,
    tokens: int,
    response: int,
    reward_model: tuple[Architecture, LayerMode] | None = None,
    *,
    on_gpu: bool,
) -> PhaseEstimate:
    """Return the scoring phase: log-probabilities of policy and reference, then the reward model's forward pass.

    Args:
        arch: the policy's base.
        mode: settings with which its layers run.
        resident: memory that stays allocated.
        rows: responses per batch.
        tokens: P + R.
        response: R.
        reward_model: sizes and layer settings of a separate reward model; None: an adapter on the base.
        on_gpu: on a GPU, or on the CPU.
    """
    forward = activations.forward_transient(arch, mode, rows * tokens)
    rewards = forward if reward_model is None else activations.forward_transient(*reward_model, rows * tokens)
    hidden = rows * tokens * mode.precision.residual * arch.hidden
    logits = lm_head.scoring(arch, mode.precision, rows * response, on_gpu=on_gpu)
    if logits + hidden >= max(forward, rewards):
        return phase("score", **_components(resident), activations=hidden, logits=logits)
    temporaries = max(forward, rewards) + resident.narrowed
    return phase("score", **_components(resident), temporaries=temporaries)


def _components(resident: Resident, record: bool = True) -> dict[str, int]:
    return {
        "base_weights": resident.base_weights,
        "adapter": resident.adapter,
        "reward_model": resident.reward_model,
        "optimizer": resident.optimizer,
        "rollout_record": resident.rollout_record if record else 0,
    }
