"""Parts of PPO's update: gradients over micro-batches and ranks, their statistics, moments over all ranks.

The algorithm itself is :mod:`.algorithm`. Every mean is a mean over all ranks: sums are added up first, then divided.

Shapes: ``B`` responses on this rank, ``R`` response positions.
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
    kl: Tensor
    """KL of the policy in training to the reference, by k3, where the loss holds it; else 0."""


@dataclass
class UpdateStats:
    """Sums over the mini-batches that were applied, how many were not, and why."""

    sums: PPOStats
    first: PPOStats | None = None
    """Sums of the very first mini-batch. The learner is compared with itself there: a ratio of 1 and an approxkl of
    0 prove that its pass is deterministic, and nothing about the sampler (see :mod:`.mismatch`)."""
    grad_norm: float = 0.0
    """The policy's, before clipping, in the newest mini-batch that was applied."""
    value_grad_norm: float = 0.0
    """The critic's, likewise."""
    updates: int = 0
    skipped: int = 0
    stopped_early: bool = False
    policykl: float = 0.0
    """Mean old − new log-probability of the newest mini-batch."""

    @classmethod
    def empty(cls, device: torch.device) -> "UpdateStats":
        """Return the sums before the first mini-batch."""
        return cls(sums=PPOStats(*torch.zeros(len(PPOStats._fields), device=device).unbind()))

    def add(self, sums: PPOStats, grad_norm: float, value_grad_norm: float) -> None:
        """Count a mini-batch that was applied."""
        self.sums = PPOStats(*(before + new for before, new in zip(self.sums, sums, strict=True)))
        self.grad_norm, self.value_grad_norm = grad_norm, value_grad_norm
        self.updates += 1

    def metrics(self, *, critic: bool = True, kl_in_loss: bool = False) -> dict[str, float]:
        """Return means per token under TRL's metric names.

        Args:
            critic: whether a critic was trained.
            kl_in_loss: whether the loss held a KL penalty.
        """
        metrics = {
            "policy/policykl": self.policykl,
            "ppo/updates": float(self.updates),
            "ppo/skipped_updates": float(self.skipped),
            "ppo/stopped_early": float(self.stopped_early),
        }
        if self.first is None:  # no mini-batch had a token in its loss
            return metrics
        first = fetch(**{name: total / self.first.tokens for name, total in self.first._asdict().items()})
        metrics = {"val/ratio_first": first["ratio"], "policy/approxkl_first": first["approxkl"]} | metrics
        if not self.updates:  # a mean over nothing is not a number worth showing
            return metrics
        sums = fetch(**self.sums._asdict())
        means = {name: total / sums["tokens"] for name, total in sums.items()}
        metrics |= {
            "loss/policy_avg": means["policy_loss"],
            "policy/clipfrac_avg": means["policy_clipped"],
            "val/ratio": means["ratio"],
            "policy/approxkl_avg": means["approxkl"],
            "policy/entropy_avg": means["entropy"],
            "grad_norm": self.grad_norm,
        }
        if kl_in_loss:
            metrics["loss/kl_avg"] = means["kl"]
        if critic:
            metrics["loss/value_avg"] = means["value_loss"]
            metrics["val/clipfrac_avg"] = means["value_clipped"]
            metrics["val/grad_norm"] = self.value_grad_norm
        return metrics


def fetch(**scalars: Tensor) -> dict[str, float]:
    """Copy scalars of one dtype from the device together: the host waits once, not once per number."""
    return dict(zip(scalars, torch.stack(list(scalars.values())).tolist(), strict=True))


class Gradients:
    """Gradients of one mini-batch, micro-batch by micro-batch, on every rank.

    Args:
        base: what is trained.
        optimizer: over ``base.trainable()``.
        reduce: sum over all ranks.
        micro_batch_size: responses per micro-batch, where there are no ``batch_sizes``.
        tokens: most tokens per micro-batch instead, likewise.
        batch_sizes: holds the micro-batch size and makes it smaller; without it a failed allocation ends the update.
    """

    def __init__(
        self,
        base: SharedBase,
        optimizer: torch.optim.Optimizer,
        reduce: Reduce,
        micro_batch_size: int,
        tokens: int | None,
        batch_sizes: BatchSizes | None,
    ) -> None:
        self._base = base
        self._optimizer = optimizer
        self._reduce = reduce
        self._micro_batch_size, self._tokens = micro_batch_size, tokens
        self._batch_sizes = batch_sizes

    def accumulate(
        self, rollout: Rollout, indices: Sequence[int], backward: Callable[[PackedBatch], PPOStats]
    ) -> PPOStats:
        """Accumulate this rank's gradients of a mini-batch; return statistics summed over all ranks.

        Where memory runs out on any rank, every rank begins the mini-batch again in smaller micro-batches: its
        gradients are the same up to the order of the sum.

        Args:
            rollout: of this rank.
            indices: its rows that belong to the mini-batch.
            backward: adds the gradients of one micro-batch.
        """
        while True:
            sums = torch.zeros(len(PPOStats._fields), device=self._base.device)
            out_of_memory = torch.zeros(1, device=self._base.device)  # counts ranks
            size, tokens = self._micro_batch_size, self._tokens
            if self._batch_sizes:
                size, tokens = self._batch_sizes.micro_batch_size, self._batch_sizes.micro_batch_tokens
            try:
                for batch in rollout.lengths.packed(indices, size, self._base.device, tokens):
                    sums += torch.stack(backward(batch)).detach()
            except Exception as error:
                if self._batch_sizes is None or memory_that_ran_out(error) is None:
                    raise
                out_of_memory.fill_(1)
            sums, out_of_memory = self._reduce(torch.cat([sums, out_of_memory])).split([len(sums), 1])
            if self._batch_sizes is None or not out_of_memory:
                return PPOStats(*sums.unbind())
            self._optimizer.zero_grad(set_to_none=True)
            self._batch_sizes.halve_micro_batch()

    def sum_over_ranks(self) -> None:
        """Sum gradients over all ranks: each rank's loss was divided by the token count of all ranks already."""
        parameters = self._base.trainable()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        # one all-reduce over one flat vector
        flat = self._reduce(torch.cat([gradient.flatten() for gradient in gradients]))
        for parameter, part in zip(parameters, flat.split([g.numel() for g in gradients]), strict=True):
            parameter.grad = part.view_as(parameter)


def whiten(values: Tensor, mask: Tensor, reduce: Reduce, shift_mean: bool = True) -> Tensor:
    """Whiten ``values``, ``[B, R]``, to unit variance over the mask of all ranks; 0 outside the mask.

    Args:
        values: ``[B, R]``.
        mask: ``[B, R]``.
        reduce: sum over all ranks.
        shift_mean: shift the mean to 0; without, it stays what it is.
    """
    mean, var = moments(values, mask, reduce)  # scalars, over the tokens of all ranks
    whitened = losses.whiten(losses.masked(values, mask), mean, var, shift_mean)  # [B, R]
    return losses.masked(whitened, mask)


def moments(values: Tensor, mask: Tensor, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Compute mean and unbiased variance over the mask of all ranks: two scalars from ``[B, R]`` each."""
    count, total = reduce(torch.stack([mask.sum(), losses.masked(values, mask).sum()])).unbind()
    mean = total / count
    squared_deviations = reduce(losses.masked(values - mean, mask).pow(2).sum())
    return mean, squared_deviations / (count - 1).clamp(min=1)


def mean_over_ranks(values: Tensor, reduce: Reduce) -> float:
    """Compute the mean of values of any shape over all ranks."""
    total, count = reduce(torch.stack([values.float().sum(), values.new_tensor(values.numel(), dtype=torch.float32)]))
    return float(total / count)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, reduce: Reduce) -> float:
    """Compute 1 − Var(returns − values) / Var(returns) over all ranks, from ``[B, R]``; 0 where returns do not vary."""
    _, var_returns = moments(returns, mask, reduce)
    _, var_errors = moments(returns - values, mask, reduce)
    return 1 - float(var_errors) / float(var_returns) if var_returns > 0 else 0.0
