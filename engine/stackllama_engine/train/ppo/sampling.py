"""Sampling responses with a key-value cache, from noise that belongs to each response.

Shapes: ``B`` prompts, ``P`` longest prompt, ``R`` longest response, ``V`` vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from .shared_base import SharedBase


@dataclass(frozen=True)
class Noise:
    """The randomness of one response: its longest length, and one uniform number a token."""

    length: int
    uniforms: Tensor
    """float64 ``[R]``."""


def draw_noise(seed: int, step: int, index: int, lengths: tuple[int, int]) -> Noise:
    """Noise of response ``index`` of ``step``: the same on every rank, machine and attempt.

    Args:
        seed: the recipe's.
        step: PPO step.
        index: position of the response in the step's batch over all ranks.
        lengths: the longest length is drawn uniformly from ``[low, high)``.
    """
    generator = torch.Generator().manual_seed(((seed * 1_000_003 + step) * 1_000_003 + index) % (1 << 63))
    length = int(torch.randint(*lengths, (1,), generator=generator))
    return Noise(length, torch.rand(length, generator=generator, dtype=torch.float64))


@torch.no_grad()
def sample(
    base: SharedBase,
    prompts: Sequence[Sequence[int]],
    noise: Sequence[Noise],
    eos: int,
    pad: int,
    each_token: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """One response a prompt, its end token included; it ends there or at its noise's length.

    Finished rows leave the batch, so that a step costs what its living rows cost.

    Args:
        base: the policy is the active adapter.
        prompts: token ids.
        noise: one a prompt.
        eos: end token.
        pad: pads prompts on the left.
        each_token: called before each; what it raises ends the sampling.
    """
    width = max(map(len, prompts))
    input_ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=base.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=base.device)
    uniforms = _pad_uniforms(noise).to(base.device)
    limits = torch.tensor([n.length for n in noise], device=base.device)
    alive = torch.arange(len(prompts), device=base.device)
    responses: list[list[int]] = [[] for _ in prompts]
    cache = DynamicCache(config=base.base.config)
    hidden = base.hidden(input_ids, mask, (mask.cumsum(1) - 1).clamp(min=0), cache)
    for position in range(int(limits.max())):
        each_token()
        tokens = pick(base.logits(hidden[:, -1]), uniforms[alive, position])
        for row, token in zip(alive.tolist(), tokens.tolist(), strict=True):
            responses[row].append(token)
        going = (tokens != eos) & (limits[alive] > position + 1)
        if not going.any():
            break
        if not going.all():
            keep = going.nonzero().squeeze(1)
            alive, mask, tokens = alive[keep], mask[keep], tokens[keep]
            cache.batch_select_indices(keep)
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        hidden = base.hidden(tokens.unsqueeze(1), mask, mask.sum(1, keepdim=True) - 1, cache)
    return responses


def pick(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Sample by the inverse of the cumulative distribution.

    Args:
        logits: float32 ``[B, V]``, already over the temperature.
        uniforms: ``[B]`` in [0, 1).

    Returns:
        Token ids ``[B]``.
    """
    cumulative = torch.softmax(logits, -1).double().cumsum(-1)
    # the rounding of the sum must not make the last token win
    threshold = (uniforms * cumulative[:, -1]).unsqueeze(-1)
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def _pad_uniforms(noise: Sequence[Noise]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([n.uniforms for n in noise], batch_first=True)
