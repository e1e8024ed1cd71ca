"""One rollout: what was sampled, and everything computed from it before the update.

Shapes: ``B`` responses, ``P`` longest prompt, ``R`` longest response.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import losses
from .scorer import Answer
from .shared_base import Outputs, SharedBase


@dataclass(frozen=True)
class Rollout:
    """Prompts padded on the left, responses on the right."""

    input_ids: Tensor
    """int64 ``[B, P + R]``."""
    attention_mask: Tensor
    """int64 ``[B, P + R]``."""
    mask: Tensor
    """float32 ``[B, R]``: 1 on response tokens, the end token included."""
    answers: list[Answer]
    """The responses as text, ``B`` of them."""
    old: Outputs
    """The policy that sampled, float32 ``[B, R]`` each."""
    ref_logprobs: Tensor
    """float32 ``[B, R]``."""
    scores: Tensor
    """The weighted sum of the opinions, float32 ``[B]``."""
    opinions: dict[str, Tensor] = field(default_factory=dict)
    """What each part of the reward said, by its metric's name; float32 ``[B]`` each."""

    @property
    def responses(self) -> int:
        """``R``."""
        return self.mask.shape[1]


@dataclass(frozen=True)
class Targets:
    """What the update aims at, float32 ``[B, R]`` each."""

    kl: Tensor
    advantages: Tensor
    returns: Tensor


def pad_tokens(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids ``[B, P + R]``, attention mask ``[B, P + R]`` and response mask ``[B, R]``."""
    left, right = max(map(len, prompts)), max(map(len, responses))
    ids, attention, mask = [], [], []
    for prompt, response in zip(prompts, responses, strict=True):
        before, after = left - len(prompt), right - len(response)
        ids.append([pad] * before + [*prompt, *response] + [pad] * after)
        attention.append([0] * before + [1] * (len(prompt) + len(response)) + [0] * after)
        mask.append([1.0] * len(response) + [0.0] * after)
    return (
        torch.tensor(ids, device=device),
        torch.tensor(attention, device=device),
        torch.tensor(mask, device=device),
    )


@torch.no_grad()
def policy_outputs(
    base: SharedBase,
    input_ids: Tensor,
    attention_mask: Tensor,
    responses: int,
    size: int,
    each_batch: Callable[[], None] = lambda: None,
) -> Outputs:
    """Outputs of the active adapter over the batch, ``size`` rows at a time.

    With ``size`` that of the update's micro-batches, the first epoch sees bit-for-bit the same log-probabilities.
    """
    parts: list[Outputs] = []
    for ids, attention in zip(input_ids.split(size), attention_mask.split(size), strict=True):
        each_batch()  # what it raises ends the pass
        parts.append(base.outputs(ids, attention, responses))
    return Outputs(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def sequence_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over each response, ``[B]``."""
    return losses.masked(values, mask).sum(1)
