"""One PPO step, in the order of the algorithm. Read this file beside the papers; the others carry it out.

1. **sample**: the policy answers this step's prompts → token ids of ``B`` responses.
2. **score**: the reward components and their weighted sum → scores ``[B]``.
3. **reference**: log-probabilities of policy and reference, and the critic's values → ``[B, R]`` each.
4. **rewards**: −kl_coef · KL at every token, plus the score at the last one → ``[B, R]``.
5. **advantages**: generalised advantage estimation from rewards and values → advantages and returns, ``[B, R]`` each.
6. **update**: epochs of mini-batches of the clipped surrogate objective and the clipped value loss → policy and critic.

Sources: PPO arXiv:1707.06347; GAE arXiv:1506.02438; KL penalty and its controller arXiv:1909.08593. The formulas are in
:mod:`.losses`, the rewards' parts in :mod:`.rewards`; where this differs from StackLLaMA's PPO says the package.

Shapes: ``B`` responses on this rank, ``b`` of a micro-batch, ``R`` response positions. ``mask`` is 1 on response tokens
(the end token included) and 0 on padding, which enters nothing. Every mean is over the tokens of all ranks.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...contract.errors import StageError
from ...contract.recipe import PPORecipe
from ..faults import Fit
from . import losses
from .fault_tolerance import Together
from .packing import PackedBatch
from .prompts import Prompt
from .rewards import RewardScaling, Scores, Unscored, final_scores
from .rollout import Advantages, Rollout, RolloutWorker
from .sampling import Noise, Responses
from .shared_base import CRITIC, SharedBase
from .update import Gradients, PPOStats, Reduce, UpdateStats, whiten

Acting = Callable[[], AbstractContextManager[None]]
"""Makes a context inside of which somebody is active."""


class Learned(NamedTuple):
    """What steps 4 to 6 made of a rollout."""

    scores: Scores
    advantages: Advantages
    stats: UpdateStats
    scaling: dict[str, float]
    """Metrics of the reward scaling."""


class Algorithm:
    """PPO's six steps on one rank; the trainer calls :meth:`sample`, :meth:`score` and :meth:`learn` in turn.

    Args:
        recipe: the PPO recipe.
        worker: samples and scores.
        scaling: of the scores, with running statistics.
        controller: of the KL coefficient.
        updater: step 6.
        together: runs a phase on every rank.
        reduce: sum over all ranks.
    """

    def __init__(
        self,
        recipe: PPORecipe,
        worker: RolloutWorker,
        scaling: RewardScaling,
        controller: losses.KLController,
        updater: "Updater",
        together: Together,
        reduce: Reduce,
    ) -> None:
        self._recipe = recipe
        self._worker = worker
        self._scaling = scaling
        self._controller = controller
        self._updater = updater
        self._together = together
        self._reduce = reduce

    def sample(self, prompts: Sequence[Prompt], noise: Sequence[Noise], eos: int) -> Responses:
        """1 sample: one response per prompt, from noise that belongs to its place in the step.

        Raises:
            Abandoned: a stop is wanted.
        """
        return self._together(lambda: self._worker.respond(prompts, noise, eos))

    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]], acting: Acting = nullcontext
    ) -> Rollout:
        """2 score and 3 reference, on every rank.

        Args:
            prompts: of this rank.
            responses: one per prompt.
            acting: makes active who sampled, where that was not the policy as it is trained.

        Raises:
            Abandoned: a stop is wanted.
            Unscored: a function of the user's failed, a text was too long, or memory ran out.
        """
        try:
            rollout = self._together(lambda: self._worker.score(prompts, responses, acting()))
        except StageError as error:
            raise Unscored(str(error)) from error
        return self._worker.settle(rollout)

    def learn(self, rollout: Rollout, shuffle: torch.Generator) -> Learned:
        """4 rewards, 5 advantages, 6 update. The KL coefficient moves afterwards (:meth:`adapt_kl_coef`).

        Args:
            rollout: of this rank.
            shuffle: orders the rows of every epoch but the first.

        Raises:
            Abandoned: a stop is wanted; the update is half done.
        """
        scaled, scaling = self._scaling(rollout.scores)  # [B]; its running statistics move here
        final = final_scores(self._recipe, scaled, rollout.answers)  # [B]
        advantages = compute_advantages(
            self._recipe, rollout, final, self._controller.coef, self._reduce
        )  # [B, R] each
        stats = self._updater.update(rollout, advantages, shuffle, self._together.between)
        return Learned(Scores(rollout.scores, scaled, final), advantages, stats, scaling)

    def rehearse(self, rollout: Rollout, shuffle: torch.Generator) -> None:
        """Steps 4 to 6 of a canary: no statistics are kept; the weights are the caller's to restore."""
        final = final_scores(self._recipe, rollout.scores, rollout.answers)
        advantages = compute_advantages(self._recipe, rollout, final, self._controller.coef, self._reduce)
        self._updater.update(rollout, advantages, shuffle, self._together.between)

    def adapt_kl_coef(self, kl: float, responses: int) -> None:
        """Move the KL coefficient towards its target, where the recipe has one; once per step, after the update.

        Args:
            kl: mean KL per response by the penalty's own estimator, as in TRL: it is what the coefficient multiplies.
            responses: of all ranks.
        """
        self._controller.update(kl, responses)


def compute_advantages(
    recipe: PPORecipe, rollout: Rollout, scores: Tensor, kl_coef: float, reduce: Reduce
) -> Advantages:
    """4 rewards and 5 advantages of a rollout. Another estimator of advantages would begin here.

    Args:
        recipe: estimator of KL, discount, what is whitened.
        rollout: of this rank.
        scores: what :func:`.rewards.final_scores` made of the rollout's, ``[B]``.
        kl_coef: weight of the KL penalty.
        reduce: sum over all ranks.
    """
    mask = rollout.mask  # [B, R]
    # 4: the penalty at every token, the score at the last
    kl = losses.kl_per_token(rollout.old.logprobs, rollout.ref_logprobs, recipe.kl_estimator)  # [B, R]
    kl = losses.masked(kl, mask)
    rewards = losses.token_rewards(scores, kl, mask, kl_coef)  # [B, R]
    if recipe.whiten_rewards:
        rewards = whiten(rewards, mask, reduce, shift_mean=False)
    # 5: from the last token backwards
    advantages, returns = losses.gae(rollout.old.values, rewards, mask, recipe.gamma, recipe.lam)  # [B, R] each
    if recipe.whiten_advantages:
        advantages = whiten(advantages, mask, reduce)
    return Advantages(kl=kl, advantages=advantages, returns=returns)


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
        self.gradients = Gradients(base, optimizer, reduce, recipe.per_device_train_batch_size, fit)

    def update(
        self,
        rollout: Rollout,
        advantages: Advantages,
        shuffle: torch.Generator,
        between: Callable[[], None] = lambda: None,
    ) -> UpdateStats:
        """All epochs of one rollout; leaves early when the policy has moved too far.

        Args:
            rollout: of this rank.
            advantages: of the same responses.
            shuffle: orders the rows of every epoch but the first, which keeps the order of the recorded
                log-probabilities.
            between: called on every rank before each mini-batch; what it raises ends the update half-way.
        """
        stats = UpdateStats.empty(self._base.device)
        self._base.model.train(self._base.checkpointing)  # checkpointing works in training mode only; dropout is 0
        try:
            for epoch in range(self._recipe.num_ppo_epochs):
                count = len(rollout.mask)
                order = torch.randperm(count, generator=shuffle) if epoch else torch.arange(count)
                for indices in order.chunk(self._recipe.num_mini_batches):
                    between()
                    self._mini_batch(rollout, advantages, indices.tolist(), stats)
                    if stats.stopped_early:
                        return stats
        finally:
            self._base.model.eval()
        return stats

    def _mini_batch(self, rollout: Rollout, advantages: Advantages, indices: list[int], stats: UpdateStats) -> None:
        """One optimizer step on the rows ``indices`` of this rank and their like on the others; or none, if it must not
        be made."""
        recipe = self._recipe
        tokens = self._reduce(rollout.mask[torch.tensor(indices, device=self._base.device)].sum())  # of all ranks
        sums = self.gradients.accumulate(
            rollout, indices, lambda batch: self._micro_batch(rollout, advantages, batch, tokens)
        )
        if stats.first is None:
            stats.first = sums
        self.gradients.sum_over_ranks()
        # apart, so that a critic far from its returns does not shorten the policy's step
        norms = [nn.utils.clip_grad_norm_(group, recipe.max_grad_norm) for group in self._base.parameter_groups()]
        finite = torch.isfinite(torch.stack(sums)).all() & torch.isfinite(torch.stack(norms)).all()
        # the numbers that decide, fetched from the device together
        numbers = torch.stack([sums.ratio / tokens, sums.policykl / tokens, *norms, finite.to(sums.ratio.dtype)])
        mean_ratio, policykl, policy_norm, critic_norm, is_finite = numbers.tolist()
        stats.policykl = policykl
        # every rank holds the same sums and gradients here, so all of them decide alike; a NaN is never applied
        if recipe.early_stopping and policykl > 1.5 * recipe.target_kl:
            stats.stopped_early = True
        elif not (mean_ratio <= recipe.ratio_threshold and is_finite):
            stats.skipped += 1
        else:
            self._optimizer.step()
            stats.add(sums, policy_norm, critic_norm)
        self._optimizer.zero_grad(set_to_none=True)

    def _micro_batch(self, rollout: Rollout, advantages: Advantages, batch: PackedBatch, tokens: Tensor) -> PPOStats:
        """Add the gradients of one micro-batch: its loss summed over its own tokens, divided by those of the whole
        mini-batch on all ranks. So each token weighs the same, whatever the length of its response."""
        recipe = self._recipe
        rows, targets = rollout.cut(batch), advantages.cut(batch)  # [b, R] each, as wide as their longest
        mask = rows.mask
        texts = rows.input_ids, rows.attention_mask, batch.response
        outputs = self._base.outputs(*texts, ask_critic=False, padded=batch.padded)
        policy = losses.policy_loss(
            outputs.logprobs, rows.old.logprobs, targets.advantages, mask, recipe.cliprange
        )  # a sum over tokens, like every loss here
        entropy = losses.masked(outputs.entropy, mask).sum()
        loss = policy.loss
        if recipe.ent_coef:  # its gradient costs another softmax over the vocabulary
            loss = loss - recipe.ent_coef * entropy
        if self._base.has_critic:  # an adapter of its own: a pass of its own
            (loss / tokens).backward()
            policy = losses.PolicyLoss(*(part.detach() for part in policy))
            entropy = entropy.detach()
            del loss, outputs  # and the graph, which keeps int8's inputs: one pass's activations at a time
            with self._base.adapter(CRITIC):
                values = self._base.values(*texts, padded=batch.padded)  # [b, R]
                value = self._value_loss(values, rows, targets)
                (recipe.vf_coef * value.loss / tokens).backward()
        else:  # the value head reads the policy's states, detached: its loss does not reach the policy
            value = self._value_loss(outputs.values, rows, targets)
            ((loss + recipe.vf_coef * value.loss) / tokens).backward()
        return PPOStats(
            policy_loss=policy.loss,
            value_loss=value.loss,
            policy_clipped=policy.clipped,
            value_clipped=value.clipped,
            ratio=policy.ratio,
            approxkl=policy.approxkl,
            entropy=entropy,
            tokens=mask.sum(),
            policykl=policy.policykl,
        )

    def _value_loss(self, values: Tensor, rows: Rollout, targets: Advantages) -> losses.ValueLoss:
        """Both clipped around the values of the rollout; ``[b, R]`` in, a sum over tokens out."""
        return losses.value_loss(values, rows.old.values, targets.returns, rows.mask, self._recipe.cliprange_value)
