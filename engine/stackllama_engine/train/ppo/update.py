"""What carries out PPO's update: gradients over micro-batches and ranks, their statistics, moments over all ranks.

The algorithm itself is :mod:`.algorithm`. Every mean is a mean over all ranks: sums are added up first, then divided.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..faults import BatchSizes, memory_that_ran_out
from . import losses
from .packing import PackedBatch
from .rollout import Rollout
from .shared_base import SharedBase

Reduce = Callable[[Tensor], Tensor]
"""Sum over all ranks; the tensor itself where there is one."""


class PPOStats(NamedTuple):
    """Sums over the tokens of a mini-batch or several; float32 scalars."""

    policy_loss: Tensor
    value_loss: Tensor
    policy_clipped: Tensor
    """Tokens on which the clipped branch of the policy's loss was the larger one."""
    value_clipped: Tensor
    ratio: Tensor
    approxkl: Tensor
    entropy: Tensor
    tokens: Tensor
    policykl: Tensor
    """old − new log-probability."""


@dataclass
class UpdateStats:
    """Sums over the mini-batches that were applied, how many were not, and why."""

    sums: PPOStats
    first: PPOStats | None = None
    """The same of the very first mini-batch. The learner is compared with itself there: a ratio of 1 and an approxkl of
    0 prove that its pass is deterministic, and nothing about the sampler (see :mod:`.mismatch`)."""
    grad_norm: float = 0.0
    """Of the policy, before clipping, in the newest mini-batch that was applied."""
    value_grad_norm: float = 0.0
    """Of the critic, likewise."""
    updates: int = 0
    skipped: int = 0
    stopped_early: bool = False
    policykl: float = 0.0
    """Of the newest mini-batch: mean old − new log-probability."""

    @classmethod
    def empty(cls, device: torch.device) -> "UpdateStats":
        """Before the first mini-batch."""
        return cls(sums=PPOStats(*torch.zeros(len(PPOStats._fields), device=device).unbind()))

    def add(self, sums: PPOStats, grad_norm: float, value_grad_norm: float) -> None:
        """Count a mini-batch that was applied."""
        self.sums = PPOStats(*(before + new for before, new in zip(self.sums, sums, strict=True)))
        self.grad_norm, self.value_grad_norm = grad_norm, value_grad_norm
        self.updates += 1

    def metrics(self) -> dict[str, float]:
        """TRL's names."""
        assert self.first is not None
        first = _numbers([part / self.first.tokens for part in self.first])
        metrics = {
            "val/ratio_first": first["ratio"],
            "policy/approxkl_first": first["approxkl"],
            "policy/policykl": self.policykl,
            "ppo/updates": float(self.updates),
            "ppo/skipped_updates": float(self.skipped),
            "ppo/stopped_early": float(self.stopped_early),
        }
        if not self.updates:  # a mean over nothing is not a number worth showing
            return metrics
        sums = _numbers(self.sums)
        means = {name: total / sums["tokens"] for name, total in sums.items()}
        return metrics | {
            "loss/policy_avg": means["policy_loss"],
            "loss/value_avg": means["value_loss"],
            "policy/clipfrac_avg": means["policy_clipped"],
            "val/clipfrac_avg": means["value_clipped"],
            "val/ratio": means["ratio"],
            "policy/approxkl_avg": means["approxkl"],
            "policy/entropy_avg": means["entropy"],
            "grad_norm": self.grad_norm,
            "val/grad_norm": self.value_grad_norm,
        }


def _numbers(sums: Sequence[Tensor]) -> dict[str, float]:
    """By the names of :class:`PPOStats`, fetched from the device together."""
    return dict(zip(PPOStats._fields, torch.stack(list(sums)).tolist(), strict=True))


class Gradients:
    """Gradients of one mini-batch, micro-batch by micro-batch, on every rank.

    Args:
        base: what is trained.
        optimizer: over ``base.trainable()``.
        reduce: sum over all ranks.
        size: rows of a micro-batch.
        batch_sizes: the same, and what makes it smaller; without it a failed allocation ends the update.
    """

    def __init__(
        self,
        base: SharedBase,
        optimizer: torch.optim.Optimizer,
        reduce: Reduce,
        size: int,
        batch_sizes: BatchSizes | None,
    ) -> None:
        self._base = base
        self._optimizer = optimizer
        self._reduce = reduce
        self._size = size
        self._batch_sizes = batch_sizes

    def accumulate(
        self, rollout: Rollout, indices: Sequence[int], micro_batch: Callable[[PackedBatch], PPOStats]
    ) -> PPOStats:
        """This rank's gradients of a mini-batch, and sums over all ranks.

        Where memory runs out on any rank, every rank begins the mini-batch again in smaller micro-batches: its
        gradients are the same up to the order of the sum.

        Args:
            rollout: of this rank.
            indices: its rows that belong to the mini-batch.
            micro_batch: adds the gradients of some of them.
        """
        count = len(PPOStats._fields)
        while True:
            sums = torch.zeros(count + 1, device=self._base.device)  # the last one counts ranks that ran out of memory
            try:
                size = self._batch_sizes.micro if self._batch_sizes else self._size
                for batch in rollout.lengths.packed(indices, size, self._base.device):
                    sums[:count] += torch.stack(micro_batch(batch)).detach()
            except Exception as error:
                if self._batch_sizes is None or memory_that_ran_out(error) is None:
                    raise
                sums[count] = 1
            sums = self._reduce(sums)
            if self._batch_sizes is None or not sums[count]:
                return PPOStats(*sums[:count].unbind())
            self._optimizer.zero_grad(set_to_none=True)
            self._batch_sizes.halve_micro()

    def sum_over_ranks(self) -> None:
        """Each rank's loss was divided by the token count of all ranks, so gradients are summed."""
        trained = self._base.trainable()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trained]
        flat = self._reduce(torch.cat([gradient.flatten() for gradient in gradients]))
        for parameter, part in zip(trained, flat.split([g.numel() for g in gradients]), strict=True):
            parameter.grad = part.view_as(parameter)


def whiten(values: Tensor, mask: Tensor, reduce: Reduce, shift_mean: bool = True) -> Tensor:
    """Unit variance over the mask of all ranks; zero mean, or the mean kept without ``shift_mean``. ``[B, R]``."""
    mean, var = moments(values, mask, reduce)
    return losses.masked(losses.whiten(losses.masked(values, mask), mean, var, shift_mean), mask)


def moments(values: Tensor, mask: Tensor, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over the mask of all ranks; scalars. ``values`` and ``mask`` are ``[B, R]``."""
    count, total = reduce(torch.stack([mask.sum(), losses.masked(values, mask).sum()])).unbind()
    mean = total / count
    return mean, reduce(losses.masked(values - mean, mask).pow(2).sum()) / (count - 1).clamp(min=1)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, reduce: Reduce) -> float:
    """1 − Var(returns − values) / Var(returns) over all ranks; 0 where returns do not vary. Inputs ``[B, R]``."""
    var = float(moments(returns, mask, reduce)[1])
    return 1 - float(moments(returns - values, mask, reduce)[1]) / var if var > 0 else 0.0
