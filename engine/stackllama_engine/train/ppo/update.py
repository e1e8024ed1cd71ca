"""Steps 4 to 6 of PPO: rewards, advantages, and the update of policy and value head.

Every mean is a mean over all ranks: sums are added up first, then divided.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...contract.recipe import PPORecipe
from ..faults import Fit, memory_that_ran_out
from . import losses
from .rollout import Rollout, Rows, Targets
from .scorer import Answer
from .shared_base import CRITIC, Outputs, SharedBase

Reduce = Callable[[Tensor], Tensor]
"""Sum over all ranks; the tensor itself where there is one."""


def targets(recipe: PPORecipe, rollout: Rollout, scores: Tensor, kl_coef: float, reduce: Reduce) -> Targets:
    """4 rewards and 5 advantages of a rollout.

    Args:
        scores: what :func:`final_scores` made of the rollout's, ``[B]``.
    """
    mask = rollout.mask
    kl = losses.masked(losses.kl_per_token(rollout.old.logprobs, rollout.ref_logprobs, recipe.kl_estimator), mask)
    rewards = losses.token_rewards(scores, kl, mask, kl_coef)
    if recipe.whiten_rewards:
        rewards = whiten(rewards, mask, reduce, shift_mean=False)
    advantages, returns = losses.gae(rollout.old.values, rewards, mask, recipe.gamma, recipe.lam)
    if recipe.whiten_advantages:
        advantages = whiten(advantages, mask, reduce)
    return Targets(kl=kl, advantages=advantages, returns=returns)


def final_scores(recipe: PPORecipe, scores: Tensor, answers: Sequence[Answer]) -> Tensor:
    """Scores as PPO sees them: minus the baseline; those of responses that never ended penalised, or replaced.

    Args:
        scores: in the units of the recipe's reward scaling, ``[B]``.
        answers: ``B`` of them.
    """
    return with_ends(recipe, scores - recipe.reward_baseline, answers)


def with_ends(recipe: PPORecipe, scores: Tensor, answers: Sequence[Answer]) -> Tensor:
    """Scores ``[B]``, those of responses that never ended penalised, or replaced."""
    ended = torch.tensor([answer.ended for answer in answers], device=scores.device)
    scores = scores - recipe.eos_penalty * ~ended
    if recipe.missing_eos_reward is not None:
        scores = scores.masked_fill(~ended, recipe.missing_eos_reward)
    return scores


def whiten(values: Tensor, mask: Tensor, reduce: Reduce, shift_mean: bool = True) -> Tensor:
    """Unit variance over the mask of all ranks; zero mean, or the mean kept without ``shift_mean``. ``[B, R]``."""
    mean, var = moments(values, mask, reduce)
    return losses.masked(losses.whiten(losses.masked(values, mask), mean, var, shift_mean), mask)


def moments(values: Tensor, mask: Tensor, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over the mask of all ranks; scalars."""
    count, total = reduce(torch.stack([mask.sum(), losses.masked(values, mask).sum()])).unbind()
    mean = total / count
    return mean, reduce(losses.masked(values - mean, mask).pow(2).sum()) / (count - 1).clamp(min=1)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, reduce: Reduce) -> float:
    """1 − Var(returns − values) / Var(returns) over all ranks; 0 where returns do not vary. Inputs ``[B, R]``."""
    var = float(moments(returns, mask, reduce)[1])
    return 1 - float(moments(returns - values, mask, reduce)[1]) / var if var > 0 else 0.0


@dataclass
class Statistics:
    """Sums over the mini-batches that were applied, how many were not, and why."""

    sums: Tensor
    """policy loss, value loss, policy clipped, value clipped, ratio, approxkl, entropy, tokens; float32 ``[8]``."""
    first: Tensor | None = None
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

    def metrics(self) -> dict[str, float]:
        """TRL's names."""
        policy, value, clipped, value_clipped, ratio, approxkl, entropy, tokens = self.sums.tolist()
        assert self.first is not None
        first = (self.first / self.first[-1]).tolist()
        facts = {
            "val/ratio_first": first[4],
            "policy/approxkl_first": first[5],
            "policy/policykl": self.policykl,
            "ppo/updates": float(self.updates),
            "ppo/skipped_updates": float(self.skipped),
            "ppo/stopped_early": float(self.stopped_early),
        }
        if not self.updates:  # a mean over nothing is not a number worth showing
            return facts
        return facts | {
            "loss/policy_avg": policy / tokens,
            "loss/value_avg": value / tokens,
            "policy/clipfrac_avg": clipped / tokens,
            "val/clipfrac_avg": value_clipped / tokens,
            "val/ratio": ratio / tokens,
            "policy/approxkl_avg": approxkl / tokens,
            "policy/entropy_avg": entropy / tokens,
            "grad_norm": self.grad_norm,
            "val/grad_norm": self.value_grad_norm,
        }


class Updater:
    """6 update: epochs of mini-batches of micro-batches over one rollout.

    Args:
        recipe: the PPO recipe.
        base: what is trained.
        optimizer: over ``base.trainable()``.
        reduce: sum over all ranks.
        fit: the micro-batches, and what makes them smaller; without it a failed allocation ends the update.
    """

    def __init__(
        self,
        recipe: PPORecipe,
        base: SharedBase,
        optimizer: torch.optim.Optimizer,
        reduce: Reduce,
        fit: Fit | None = None,
    ) -> None:
        self._recipe = recipe
        self._base = base
        self._optimizer = optimizer
        self._reduce = reduce
        self._fit = fit

    def update(
        self,
        rollout: Rollout,
        goal: Targets,
        generator: torch.Generator,
        between: Callable[[], None] = lambda: None,
    ) -> Statistics:
        """All epochs of one rollout; leaves early when the policy has moved too far.

        Args:
            generator: shuffles all epochs but the first, whose order is that of the recorded log-probabilities.
            between: called on every rank before each mini-batch; what it raises ends the update half-way.
        """
        statistics = Statistics(sums=torch.zeros(8, device=self._base.device))
        self._base.model.train(self._base.checkpointing)  # checkpointing works in training mode only; dropout is 0
        try:
            for epoch in range(self._recipe.num_ppo_epochs):
                count = len(rollout.mask)
                order = torch.randperm(count, generator=generator) if epoch else torch.arange(count)
                for places in order.chunk(self._recipe.num_mini_batches):
                    between()
                    if not self._mini_batch(rollout, goal, places.tolist(), statistics):
                        return statistics
        finally:
            self._base.model.eval()
        return statistics

    def _mini_batch(self, rollout: Rollout, goal: Targets, places: list[int], statistics: Statistics) -> bool:
        """One optimizer step, whose numbers are fetched from the device together; False when the epochs must end."""
        recipe = self._recipe
        tokens = self._reduce(rollout.mask[torch.tensor(places, device=self._base.device)].sum())
        sums = self._accumulate(rollout, goal, places, tokens)
        if statistics.first is None:
            statistics.first = sums[:8]
        self._sum_gradients()
        # apart, so that a critic far from its targets does not shorten the policy's step
        norms = [nn.utils.clip_grad_norm_(group, recipe.max_grad_norm) for group in self._base.parameter_groups()]
        finite = torch.isfinite(sums).all() & torch.isfinite(torch.stack(norms)).all()
        facts = torch.stack([sums[4] / tokens, sums[8] / tokens, *norms, finite.to(sums.dtype)]).tolist()
        mean_ratio, statistics.policykl, grad_norm, value_grad_norm, is_finite = facts
        if recipe.early_stopping and statistics.policykl > 1.5 * recipe.target_kl:
            self._optimizer.zero_grad(set_to_none=True)
            statistics.stopped_early = True
            return False
        # every rank holds the same sums and gradients here, so all of them decide alike; a NaN is never applied
        if not (mean_ratio <= recipe.ratio_threshold and is_finite):
            self._optimizer.zero_grad(set_to_none=True)
            statistics.skipped += 1
            return True
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        statistics.sums += sums[:8]
        statistics.grad_norm, statistics.value_grad_norm = grad_norm, value_grad_norm
        statistics.updates += 1
        return True

    def _accumulate(self, rollout: Rollout, goal: Targets, places: list[int], tokens: Tensor) -> Tensor:
        """This rank's gradients of a mini-batch, and sums over all ranks, ``[9]``.

        Where memory runs out on any rank, every rank begins the mini-batch again in smaller micro-batches: its
        gradients are the same up to the order of the sum.
        """
        while True:
            sums = torch.zeros(10, device=self._base.device)  # the last one counts ranks that ran out of memory
            try:
                size = self._fit.micro if self._fit else self._recipe.per_device_train_batch_size
                for rows in rollout.lengths.packed(places, size, self._base.device):
                    sums[:9] += self._micro_batch(rollout, goal, rows, tokens)
            except Exception as error:
                if self._fit is None or memory_that_ran_out(error) is None:
                    raise
                sums[9] = 1
            sums = self._reduce(sums)
            if self._fit is None or not sums[9]:
                return sums[:9]
            self._optimizer.zero_grad(set_to_none=True)
            self._fit.halve_micro()

    def _micro_batch(self, rollout: Rollout, goal: Targets, rows: Rows, tokens: Tensor) -> Tensor:
        """Gradients of the loss summed over tokens and divided by ``tokens``.

        Returns:
            The sums of :class:`Statistics` followed by policykl's.
        """
        cut, aims = rollout.cut(rows), goal.cut(rows)
        texts = cut.input_ids, cut.attention_mask, rows.response
        outputs = self._base.outputs(*texts, ask_critic=False, padded=rows.padded)
        loss, values, told = self._policy_loss(outputs, cut, aims)
        if self._base.has_critic:
            (loss / tokens).backward()
            del loss, values, outputs  # and the graph, which keeps int8's inputs: one pass's activations at a time
            with self._base.adapter(CRITIC):
                value = self._value_loss(self._base.values(*texts, padded=rows.padded), cut, aims)
                (self._recipe.vf_coef * value.loss / tokens).backward()
        else:
            value = self._value_loss(values, cut, aims)
            ((loss + self._recipe.vf_coef * value.loss) / tokens).backward()
        policy, clipped, ratio, approxkl, entropy, count, policykl = told
        parts = (policy, value.loss, clipped, value.clipped, ratio, approxkl, entropy, count, policykl)
        return torch.stack(parts).detach()

    def _policy_loss(self, new: Outputs, rollout: Rollout, goal: Targets) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """The policy's loss with its entropy bonus, the values, and sums for the statistics without a graph."""
        recipe, mask, old = self._recipe, rollout.mask, rollout.old
        policy = losses.policy_loss(new.logprobs, old.logprobs, goal.advantages, mask, recipe.cliprange)
        entropy = losses.masked(new.entropy, mask).sum()
        loss = policy.loss
        if recipe.ent_coef:  # its gradient costs another softmax over the vocabulary
            loss = loss - recipe.ent_coef * entropy
        told = (policy.loss, policy.clipped, policy.ratio, policy.approxkl, entropy, mask.sum(), policy.policykl)
        return loss, new.values, tuple(one.detach() for one in told)

    def _value_loss(self, values: Tensor, rollout: Rollout, goal: Targets) -> losses.ValueLoss:
        return losses.value_loss(values, rollout.old.values, goal.returns, rollout.mask, self._recipe.cliprange_value)

    def _sum_gradients(self) -> None:
        """Each rank's loss was divided by the token count of all ranks, so gradients are summed."""
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._base.trainable()]
        flat = self._reduce(torch.cat([gradient.flatten() for gradient in gradients]))
        for parameter, part in zip(self._base.trainable(), flat.split([g.numel() for g in gradients]), strict=True):
            parameter.grad = part.view_as(parameter)
