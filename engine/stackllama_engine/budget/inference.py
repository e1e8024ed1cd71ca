"""The phases of a PPO step that need no gradients: sampling with a key-value cache, and scoring.

Shapes: B responses at a time, P prompt, R response, V vocabulary.
"""

from msgspec import Struct

from . import activations, lm_head
from .activations import LayerMode
from .architecture import Architecture
from .parts import Component, PhaseEstimate, phase


class Standing(Struct, frozen=True, kw_only=True):
    """What lies on the device through all of PPO, in bytes."""

    base_weights: int
    adapter: int
    """Policy, value head, and a frozen copy of a continued policy."""
    reward_model: int
    optimizer: int
    narrowed: int = 0
    """16-bit copies of the adapter's float32 weights, which autocast keeps while it is entered."""
    rollout_record: int
    """Ids, masks, log-probabilities, values, advantages of all rollouts of a step."""


def kv_cache(arch: Architecture, mode: LayerMode, rows: int, tokens: int) -> int:
    """Keys and values of every layer. Rotated keys have the residual stream's dtype, values that of a linear."""
    wide = max(mode.precision.compute, mode.precision.residual) + mode.precision.compute
    return arch.layers * arch.kv * wide * rows * tokens


def rollout(
    arch: Architecture, mode: LayerMode, standing: Standing, rows: int, prompt: int, response: int
) -> PhaseEstimate:
    """Sampling: the cache at its longest with one layer's keys twice, while they grow by one token, or the next
    token's distribution; or the prompt's forward pass."""
    cache = kv_cache(arch, mode, rows, prompt + response)
    grown = arch.kv * max(mode.precision.compute, mode.precision.residual) * rows * (prompt + response)
    logits = lm_head.sampling(arch, mode.precision, rows)
    last = max(logits, standing.narrowed + grown) + activations.forward_transient(arch, mode, rows)
    prefill = activations.forward_transient(arch, mode, rows * prompt) - kv_cache(arch, mode, rows, response)
    return phase(
        "rollout",
        **_standing(standing, record=False),
        kv_cache=cache,
        temporaries=max(last, prefill + standing.narrowed),
    )


def vllm_rollout(standing: Standing, share: int) -> PhaseEstimate:
    """Sampling by vLLM, which holds its weights and its cache in a share of the card that is fixed beforehand."""
    ours = phase("rollout", **_standing(standing, record=False))
    return PhaseEstimate("rollout", (*ours.components, Component("vLLM's share", share)))


def score(
    arch: Architecture,
    mode: LayerMode,
    standing: Standing,
    rows: int,
    tokens: int,
    response: int,
    judge: tuple[Architecture, LayerMode] | None = None,
) -> PhaseEstimate:
    """Log-probabilities of policy and reference, and the reward model's forward pass; one after the other.

    Args:
        arch: the policy's base.
        mode: how it runs.
        standing: what is there anyhow.
        rows: responses at a time.
        tokens: P + R.
        response: R.
        judge: a reward model of its own, and how it runs; None: an adapter on the base.
    """
    forward = activations.forward_transient(arch, mode, rows * tokens)
    judged = forward if judge is None else activations.forward_transient(*judge, rows * tokens)
    hidden = rows * tokens * mode.precision.residual * arch.hidden
    logits = lm_head.scoring(arch, mode.precision, rows * response)
    if logits + hidden >= max(forward, judged):
        return phase("score", **_standing(standing), activations=hidden, logits=logits)
    temporaries = max(forward, judged) + standing.narrowed
    return phase("score", **_standing(standing), temporaries=temporaries)


def _standing(standing: Standing, record: bool = True) -> dict[str, int]:
    return {
        "base_weights": standing.base_weights,
        "adapter": standing.adapter,
        "reward_model": standing.reward_model,
        "optimizer": standing.optimizer,
        "rollout_record": standing.rollout_record if record else 0,
    }
