"""Reward training in micro-batches of so many tokens: pairs of like length together, each step's gradient unchanged.

The Trainer hands over the pairs of a whole optimizer step (:func:`whole_steps`). They are sorted by length, cut to
theirs and weighted by their share of the step, so that their gradients add up to those of the mean over all of them.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..contract.recipe import RewardRecipe
from .ppo.packing import longest_first

_Base: Any = object  # TRL's RewardTrainer comes after it


def whole_steps(recipe: RewardRecipe) -> dict[str, Any]:
    """Return the Trainer's batch sizes: with micro-batches by tokens, one batch per optimizer step."""
    if recipe.max_tokens_per_micro_batch is None:
        return {}
    total = recipe.micro_batch_size * recipe.gradient_accumulation_steps
    return {"per_device_train_batch_size": total, "gradient_accumulation_steps": 1}


class TokenMicroBatches(_Base):
    """Mix-in before TRL's RewardTrainer."""

    max_tokens: int | None = None
    """Most tokens per micro-batch, padding included; None: the Trainer's own micro-batches."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Add up the gradients of a step; return its loss. Without a limit, TRL's own."""
        if self.max_tokens is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]  # [2N, T]: N better texts, then N worse ones
        count = len(ids) // 2  # N
        done = 0
        rows: list[Tensor] = []
        logits: list[Tensor] = []
        for pairs, width in micro_batches(mask, self.max_tokens):
            both = torch.cat([pairs, pairs + count])  # [2n]
            done += len(pairs)
            # ranks have micro-batches of their own, as many as they like: their gradients meet once per step
            with nullcontext() if done == count else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    part = model(input_ids=ids[both, :width], attention_mask=mask[both, :width], use_cache=False).logits
                    loss = pair_loss_sum(part.squeeze(-1), self.args.center_rewards_coefficient) / count
                self.accelerator.backward(loss)
            rows.append(both)
            logits.append(part.detach())
        # TRL's loss and metrics of all pairs together; its collectives happen once per step on every rank
        with torch.no_grad():
            answered = _Answered(torch.cat(logits)[torch.cat(rows).argsort()])  # [2N, 1]
            return self.compute_loss(answered, inputs).detach()


class _Answered:
    """A model that has been asked already."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def __call__(self, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self._logits)


def micro_batches(mask: Tensor, max_tokens: int) -> Iterator[tuple[Tensor, int]]:
    """Yield the indices of the pairs of each micro-batch, ``[n]``, longest first, and the tokens of its longest text.

    Args:
        mask: ``[2N, T]``: N better texts, then N worse ones, padded on the right.
        max_tokens: most tokens per micro-batch, padding included.
    """
    lengths: list[int] = mask.sum(1).view(2, -1).amax(0).tolist()  # of each pair's longer text
    for pairs in longest_first(range(len(lengths)), lambda pair: 2 * lengths[pair], 1, max_tokens):
        yield torch.tensor(pairs, device=mask.device), lengths[pairs[0]]


def pair_loss_sum(rewards: Tensor, centering: float | None) -> Tensor:
    """Sum TRL's loss over pairs: Bradley-Terry, and the centering term if it is enabled.

    Args:
        rewards: ``[2n]``: n better texts, then n worse ones.
        centering: coefficient of the squared sum of both.
    """
    better, worse = rewards.chunk(2)
    loss = -logsigmoid(better - worse).sum()
    return loss if centering is None else loss + centering * (better + worse).pow(2).sum()
