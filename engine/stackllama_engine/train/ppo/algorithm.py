"""One PPO step, in the order of the algorithm: the one file to read beside the papers.

1. **sample**: the policy responds to this step's prompts → token ids of ``B`` responses.
2. **score**: the reward components and their weighted sum → ``scores``, ``[B]``.
3. **evaluate**: for the same tokens, log-probabilities under the policy that sampled (``old``, π_old) and under the
   reference (π_ref, the policy before PPO), at the sampling `temperature`, and the critic's values: all computed with
   the forward pass used in training, not by the sampler → ``[B, R]`` each.
4. **rewards**: scores are scaled and penalised where the recipe says so; then every token's reward is −kl_coef · its KL
   to the reference, and that of the response's last token also has the score → ``[B, R]``.
5. **advantages**: generalised advantage estimation from rewards and values → ``advantages``, ``returns``, ``[B, R]``.
6. **update**: epochs of mini-batches: clipped surrogate objective for the policy, clipped squared error for the critic.

With `advantage` rloo or grpo there is no critic. 1 samples groups of ``n`` responses to the same prompt, one after the
other in ``B``; 4 adds a response's token rewards up to one number, and 5 compares it with the rest of its group →
one advantage per response, the same for all of its tokens. Everything else is shared.

The trainer makes one step of::

    responses = algorithm.sample(prompts, noise, stops)  # 1
    rollout = algorithm.score(prompts, responses)  # 2, 3; if it holds a NaN or infinity, only the last line follows
    result = algorithm.learn(rollout, shuffle)  # 4, 5, 6
    algorithm.adapt_kl_coef(kl, response_count)  # of this rollout, on all ranks; the next step uses the new coefficient
    schedule.advance(scheduler)  # the learning rate: once per PPO step, not per mini-batch

Departures from StackLLaMA's PPO are listed in the package's docstring.

Sources: PPO arXiv:1707.06347; GAE arXiv:1506.02438; RLOO arXiv:2402.14740; GRPO arXiv:2402.03300; the KL penalty in
the reward, and its controller, arXiv:1909.08593. Each formula is a function of :mod:`.losses`, which takes tensors and
plain numbers.

Shapes: ``B`` responses on this rank, ``R`` tokens in the longest of them; in a micro-batch, ``b`` and ``r``. ``mask``
is 1 on response tokens, the end token included, and 0 on the padding after them; every per-token loss, mean and
variance is over its ones alone. ``reduce`` sums over all ranks. Keys of the recipe are written like `target`.

Two divergences and three estimates, all from the tokens that π_old sampled (π_new: the policy in training):

- **kl**, of π_old from π_ref: penalised in the rewards; its sum per response may be steered to `target`;
- **approxkl**, of π_old from π_new, mean of ½ (log π_new − log π_old)²: a metric, no more;
- **policykl**, of the same, mean of log π_old − log π_new over a mini-batch: if `early_stopping`, above 1.5 ×
  `target_kl`, which is unrelated to `target`, it ends the update.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...contract.errors import StageError
from ...contract.recipe import PPORecipe
from ..faults import BatchSizes
from . import losses
from .fault_tolerance import RunOnAllRanks
from .packing import PackedBatch
from .prompts import Prompt
from .rewards import RewardScaling, Scores, Unscored, final_scores
from .rollout import Advantages, Rollout, RolloutWorker
from .sampling import Noise, Responses
from .shared_base import CRITIC, SharedBase
from .update import Gradients, PPOStats, Reduce, UpdateStats, fetch, whiten

Acting = Callable[[], AbstractContextManager[None]]
"""Makes a context in which a model other than the policy is active, in an evaluation."""

_EARLY_STOP = 1.5
"""Times `target_kl`, as in TRL 0.11's ``early_stopping``."""


class LearnResult(NamedTuple):
    """Results of steps 4 to 6."""

    scores: Scores
    advantages: Advantages
    stats: UpdateStats
    kl_coef: float
    """The coefficient that the rewards were penalised with."""
    scaling_metrics: dict[str, float]


@dataclass(frozen=True)
class Algorithm:
    """PPO's six steps on one rank."""

    recipe: PPORecipe
    worker: RolloutWorker
    """Generates and scores rollouts."""
    scaling: RewardScaling
    """Normalises and clips scores, with running statistics."""
    controller: losses.KLController
    """Holds the KL coefficient."""
    updater: "Updater"
    run_on_all_ranks: RunOnAllRanks
    """Runs a phase on every rank until it fits into memory."""
    reduce: Reduce

    def sample(
        self, prompts: Sequence[Prompt], noise: Sequence[Noise], stops: Sequence[int], group_size: int = 1
    ) -> Responses:
        """1 sample: generate one response per prompt.

        Args:
            prompts: of this rank.
            noise: random numbers of each response; they follow from seed, step and position in the step.
            stops: tokens that end a response.
            group_size: number of prompts in a row that are the same one.

        Raises:
            Abandoned: a stop is wanted.
        """
        return self.run_on_all_ranks(lambda: self.worker.respond(prompts, noise, stops, group_size))

    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Responses,
        acting: Acting = nullcontext,
        *,
        run_critic: bool = True,
    ) -> Rollout:
        """2 score and 3 evaluate: compute everything that later steps read of a rollout.

        Args:
            prompts: of this rank.
            responses: token ids, one list per prompt.
            acting: context in which the model that sampled is active; by default that is the policy.
            run_critic: False for a rollout that nobody learns from.

        Raises:
            Abandoned: a stop is wanted.
            Unscored: a user-supplied function failed, a text was too long, or memory ran out.
        """
        try:
            rollout = self.run_on_all_ranks(
                lambda: self.worker.score(prompts, responses, acting(), run_critic=run_critic)
            )
        except StageError as error:
            raise Unscored(str(error)) from error
        # a user's function may abstain: with a reward model its part is left out of the sum; without one the response
        # gets the mean score of the others, over all ranks
        return self.worker.fill_abstained(rollout)

    def learn(self, rollout: Rollout, shuffle: torch.Generator) -> LearnResult:
        """4 rewards, 5 advantages, 6 update.

        Changes the running statistics of the scores, then policy, critic and optimizer; not the KL coefficient.

        Args:
            rollout: of this rank.
            shuffle: orders the rows of every epoch but the first.

        Raises:
            Abandoned: a stop is wanted; the update is half done, and the caller restores what was before.
            StageError: memory ran out with one response per micro-batch.
        """
        # 4, per response. raw → scaled: if `normalize_reward`, (score − mean) / (std + 1e-4), with mean and std of all
        # ranks' scores so far, these included; then, if `cliprange_reward` is set, clipped to ± that
        self.scaling.update(rollout.scores)
        scaled = self.scaling.scale(rollout.scores)  # [B]
        scaling_metrics = self.scaling.metrics(rollout.scores)
        # scaled → final: minus the constant `reward_baseline`. A response that was cut off (its last token is not the
        # end token) stays in the batch; its score is lowered by `missing_eos_penalty` (default: 1 with a reward model,
        # else 0) or, if that is set, becomes `missing_eos_reward`
        final = final_scores(self.recipe, scaled, rollout.texts)  # [B]
        # 4, per token, and 5, with the coefficient that adapt_kl_coef left behind one step ago
        kl_coef = self.controller.coef
        advantages = compute_advantages(self.recipe, rollout, final, kl_coef, self.reduce)  # [B, R] each
        # 6
        stats = self.updater.update(rollout, advantages, shuffle, self.run_on_all_ranks.check_stop)
        scores = Scores(raw=rollout.scores, scaled=scaled, final=final)
        return LearnResult(scores, advantages, stats, kl_coef, scaling_metrics)

    def learn_as_canary(self, rollout: Rollout, shuffle: torch.Generator) -> None:
        """Run steps 4 to 6 as a canary: a worst-case trial batch before training; no running statistics move.

        Weights and optimizer state are the caller's to restore.
        """
        final = final_scores(self.recipe, rollout.scores, rollout.texts)  # [B]
        advantages = compute_advantages(self.recipe, rollout, final, self.controller.coef, self.reduce)
        if (
            advantages.loss_mask is not None
        ):  # its responses are all cut off, which the recipe may leave out of the loss
            advantages = replace(advantages, loss_mask=rollout.mask)
        self.updater.update(rollout, advantages, shuffle, self.run_on_all_ranks.check_stop)

    def adapt_kl_coef(self, kl: float, response_count: int) -> None:
        """Adapt the KL coefficient so that ``kl`` nears `target`; unchanged if `adap_kl_ctrl` is false.

        ``coef *= 1 + clip(kl / target − 1, ±0.2) · response_count / horizon``. The trainer calls it once per step,
        after :meth:`learn`.

        Args:
            kl: mean over the responses of all ranks of their KL (the sum over tokens), by the penalty's estimator.
            response_count: over all ranks.
        """
        self.controller.update(kl, response_count)


def compute_advantages(
    recipe: PPORecipe, rollout: Rollout, scores: Tensor, kl_coef: float, reduce: Reduce
) -> Advantages:
    """4 rewards per token and 5 advantages: the only place that makes advantages.

    The update and the metrics read what this returns, and nothing else knows how it was made.

    Args:
        recipe: estimator of KL, discount, what is whitened.
        rollout: of this rank.
        scores: final scores, see :func:`.rewards.final_scores`; ``[B]``.
        kl_coef: weight of the KL penalty.
        reduce: sum over all ranks.
    """
    mask = rollout.mask  # [B, R]
    # 4 rewards. The KL enters here: −kl_coef · KL is the reward of every token; the last one's also has the score.
    # `kl_estimator`, with d = log π_old − log π_ref: k1 (the default) = d, k2 = ½ d², k3 = e^−d − 1 + d. π_old is the
    # policy that sampled, fixed for the whole update; no gradient flows through the rewards.
    kl = losses.kl_per_token(rollout.old.logprobs, rollout.ref_logprobs, recipe.penalty_estimator)  # [B, R]
    kl = losses.masked(kl, mask)  # [B, R]
    if not recipe.has_critic:
        return _group_advantages(recipe, rollout, scores, kl, kl_coef)
    rewards = losses.token_rewards(scores, kl, mask, kl_coef)  # [B, R]
    # whitening: (x − mean) / √(var + 1e-8), plus the mean again unless it is shifted to 0; mean and unbiased variance
    # are over all ranks' tokens; padding is 0 afterwards
    if recipe.whiten_rewards:
        rewards = whiten(rewards, mask, reduce, shift_mean=False)  # [B, R]
    # 5 advantages, from the last token backwards: A_t = δ_t + γλ A_t+1, δ_t = r_t + γ V_t+1 − V_t; returns = A + V.
    # V and A after the last token are 0, of a response that was cut off as well: truncation is treated as terminal.
    advantages, returns = losses.gae(rollout.old.values, rewards, mask, recipe.gamma, recipe.lam)  # [B, R] each
    if recipe.whiten_advantages:  # the returns stay as they are
        advantages = whiten(advantages, mask, reduce, shift_mean=True)  # [B, R]
    return Advantages(kl=kl, advantages=advantages, returns=returns)


def _group_advantages(recipe: PPORecipe, rollout: Rollout, scores: Tensor, kl: Tensor, kl_coef: float) -> Advantages:
    """Compute advantages within groups of ``n`` responses to the same prompt, without values.

    Args:
        recipe: estimator, and what is left out of the loss.
        rollout: of this rank, whose groups are ``n`` rows in a row.
        scores: final scores, ``[B]``.
        kl: per token, by the penalty's estimator, ``[B, R]``.
        kl_coef: weight of the KL penalty.
    """
    mask = rollout.mask  # [B, R]
    # a response's reward is the sum of its token rewards: its score, and −kl_coef · KL unless the loss holds that
    rewards = scores if recipe.kl_in_loss else scores - kl_coef * kl.sum(1)  # [B]
    # responses that every function abstained from have no reward of their own, and enter no baseline
    scored = torch.ones_like(scores) if rollout.abstained is None else 1 - rollout.abstained.to(scores.dtype)  # [B]
    in_groups, groups_scored = rewards.view(-1, recipe.group_size), scored.view(-1, recipe.group_size)  # [G, n] each
    # rloo: A = r − mean of the others; grpo: A = r − mean of the group, over its deviation if `scale_rewards`
    if recipe.advantage == "rloo":
        advantages = losses.leave_one_out(in_groups, groups_scored)  # [G, n]
    else:
        advantages = losses.group_relative(in_groups, groups_scored, scale=recipe.scale_rewards)  # [G, n]
    # out of the loss, if so asked: responses that were cut off; groups whose scores, before the KL, are all the same
    zero_std = losses.without_spread(scores.view(-1, recipe.group_size), groups_scored)  # bool [G]
    kept = torch.ones_like(scores)  # [B]
    if recipe.mask_truncated_completions:
        kept *= kept.new_tensor([float(text.ended) for text in rollout.texts])
    if recipe.skip_zero_std_groups:
        kept *= (~zero_std).repeat_interleave(recipe.group_size)
    return Advantages(
        kl=kl,
        advantages=advantages.view(-1, 1) * mask,  # [B, R], the same for every token of a response
        returns=None,
        loss_mask=mask * kept.unsqueeze(1),  # [B, R]
        ref_logprobs=rollout.ref_logprobs if recipe.kl_in_loss else None,
        kl_coef=kl_coef if recipe.kl_in_loss else 0.0,
        zero_std=zero_std,
    )


class Updater:
    """6 update: epochs of mini-batches of micro-batches over one rollout.

    A mini-batch is one optimizer step; a micro-batch is what goes through the model at once.

    Args:
        recipe: the PPO recipe.
        base: what is trained.
        optimizer: over ``base.trainable()``.
        reduce: sum over all ranks.
        batch_sizes: the micro-batch size, and what makes it smaller; without it a failed allocation ends the update.
    """

    def __init__(
        self,
        recipe: PPORecipe,
        base: SharedBase,
        optimizer: torch.optim.Optimizer,
        reduce: Reduce,
        batch_sizes: BatchSizes | None = None,
    ) -> None:
        self._recipe = recipe
        self._base = base
        self._optimizer = optimizer
        self._reduce = reduce
        sizes = recipe.micro_batch_size, recipe.max_tokens_per_micro_batch
        self.gradients = Gradients(base, optimizer, reduce, *sizes, batch_sizes)

    def update(
        self,
        rollout: Rollout,
        advantages: Advantages,
        shuffle: torch.Generator,
        check_stop: Callable[[], None] = lambda: None,
    ) -> UpdateStats:
        """Train on all epochs of one rollout; end early when the policy has moved too far.

        Args:
            rollout: of this rank.
            advantages: of the same responses.
            shuffle: orders the rows of every epoch but the first, which keeps the order in which the log-probabilities
                of π_old were computed, so that the first mini-batch has ratio 1, to the bit.
            check_stop: called on every rank before each mini-batch; what it raises ends the update half-way.
        """
        stats = UpdateStats.empty(self._base.device)
        self._base.model.train(self._base.checkpointing)  # checkpointing works in training mode only; dropout is 0
        try:
            for epoch in range(self._recipe.num_ppo_epochs):
                count = len(rollout.mask)  # B, the same on every rank: see ``PPO._batch`` in trainer.py
                order = torch.randperm(count, generator=shuffle) if epoch else torch.arange(count)
                for indices in order.chunk(self._recipe.num_mini_batches):  # of one size: `num_mini_batches` divides B
                    check_stop()
                    self._mini_batch(rollout, advantages, indices.tolist(), stats)
                    if stats.stopped_early:
                        return stats
        finally:
            self._base.model.eval()
        return stats

    def _mini_batch(self, rollout: Rollout, advantages: Advantages, indices: list[int], stats: UpdateStats) -> None:
        """Make one optimizer step on these rows of this rank and as many on every other.

        The step is skipped if the mean ratio is above `ratio_threshold` or a number is not finite. If the policy moved
        too far (`early_stopping`), this step is not made either, and the update ends. Clipping never drops a step: it
        limits a token's loss (`cliprange`, `cliprange_value`) or a gradient's norm (`max_grad_norm`).
        """
        recipe = self._recipe
        # gradients: the loss is a mean over all tokens of the mini-batch that are in it, on all ranks, or what
        # `loss_type` makes of that by the weights of the responses
        loss_mask = rollout.mask if advantages.loss_mask is None else advantages.loss_mask  # [B, R]
        token_count = self._reduce(loss_mask[torch.tensor(indices, device=self._base.device)].sum())
        if advantages.loss_mask is not None and not token_count:
            return  # nothing to learn from, which is no fault
        weights = None if recipe.has_critic else self._weights(loss_mask, len(indices), token_count)  # [B]
        sums = self.gradients.accumulate(
            rollout, indices, lambda batch: self._micro_batch(rollout, advantages, batch, token_count, weights)
        )  # sums over the tokens of all ranks, like token_count; the gradients are this rank's until the next line
        self.gradients.sum_over_ranks()
        if stats.first is None:
            stats.first = sums
        # policy and critic are clipped apart, so that a critic far from its returns does not shorten the policy's step
        policy_parameters, critic_parameters = self._base.parameter_groups()
        policy_norm = nn.utils.clip_grad_norm_(policy_parameters, recipe.max_grad_norm)
        critic_norm = torch.zeros_like(policy_norm)
        if critic_parameters:
            critic_norm = nn.utils.clip_grad_norm_(critic_parameters, recipe.max_grad_norm)
        if advantages.returns is None:  # no gradient rather than 0, with which weight decay would move the critic
            for parameter in critic_parameters:
                parameter.grad = None
        # every rank holds the same sums and gradients here, so all of them decide alike; a NaN is never applied
        finite = torch.isfinite(torch.stack([*sums, policy_norm, critic_norm])).all()
        means = fetch(
            ratio=sums.ratio / token_count,
            policykl=sums.policykl / token_count,
            policy_norm=policy_norm,
            critic_norm=critic_norm,
            finite=finite.to(sums.ratio.dtype),
        )
        stats.policykl = means["policykl"]
        if recipe.early_stopping and means["policykl"] > _EARLY_STOP * recipe.target_kl:
            stats.stopped_early = True
        elif not (means["ratio"] <= recipe.ratio_threshold and means["finite"]):
            stats.skipped += 1
        else:
            self._optimizer.step()
            stats.add(sums, means["policy_norm"], means["critic_norm"])
        self._optimizer.zero_grad(set_to_none=True)

    def _weights(self, loss_mask: Tensor, responses: int, token_count: Tensor) -> Tensor | None:
        """Return the weights of the responses in the loss, ``[B]``, by `loss_type`; None: 1.

        Args:
            loss_mask: ``[B, R]``.
            responses: of the mini-batch on this rank.
            token_count: tokens in the loss of the mini-batch, on all ranks.
        """
        response_count = self._reduce(torch.full_like(token_count, responses))
        lengths, longest = loss_mask.sum(1), self._recipe.longest_response
        return losses.response_weights(self._recipe.loss_type, lengths, token_count, response_count, longest)

    def _micro_batch(
        self,
        rollout: Rollout,
        advantages: Advantages,
        batch: PackedBatch,
        token_count: Tensor,
        weights: Tensor | None = None,
    ) -> PPOStats:
        """Add the gradients of one micro-batch; return sums over its tokens, for the statistics.

        Its loss is summed over its tokens and divided by the token count of the whole mini-batch on all ranks. So each
        token weighs the same, whatever its response's length, its micro-batch and its rank, but for the ``weights`` of
        the responses, ``[B]``.
        """
        recipe = self._recipe
        rollout, advantages = rollout.select(batch), advantages.select(batch)  # the micro-batch's rows, [b, r] each
        mask = rollout.mask if advantages.loss_mask is None else advantages.loss_mask  # [b, r]
        old, weights = rollout.old, None if weights is None else weights[batch.indices]  # weights: [b]
        inputs = rollout.input_ids, rollout.attention_mask, batch.response  # the last one is r
        shape = {"padded": batch.padded, "width": batch.width}
        # policy: −min(ratio · A, clip(ratio, 1 ± cliprange) · A), ratio = π_new / π_old; summed over the mask, as every
        # loss here is; an entropy bonus and a KL penalty where the recipe has them
        outputs = self._base.outputs(*inputs, run_separate_critic=False, **shape)  # [b, r] each
        clip = recipe.cliprange, recipe.epsilon_high
        policy = losses.policy_loss(outputs.logprobs, old.logprobs, advantages.advantages, mask, *clip, weights)
        entropies = losses.masked(outputs.entropy, mask)  # [b, r]
        entropy, kl = entropies.sum(), mask.new_zeros(())
        loss = policy.loss
        if recipe.ent_coef:  # its gradient costs another softmax over the vocabulary
            loss = loss - recipe.ent_coef * losses.weighted_sum(entropies, weights)
        if advantages.ref_logprobs is not None:  # of the policy in training, by k3, whose gradient pulls towards π_ref
            compared = (losses.masked(logprobs, mask) for logprobs in (outputs.logprobs, advantages.ref_logprobs))
            kl_tokens = losses.kl_per_token(*compared, estimator="k3")  # [b, r], 0 outside the mask
            loss = loss + advantages.kl_coef * losses.weighted_sum(kl_tokens, weights)
            kl = kl_tokens.detach().sum()
        (loss / token_count).backward()
        policy = losses.PolicyLoss(*(part.detach() for part in policy))
        values, entropy = outputs.values, entropy.detach()
        del loss, outputs  # frees the policy's graph before the critic's pass makes another
        # critic: ½ max((V − returns)², (clip(V, V_old ± cliprange_value) − returns)²). V is a head on the hidden states
        # of a separate adapter (`value_adapter`), in a forward pass of its own, or else on the policy's, detached: the
        # value loss never reaches the policy's weights.
        value = losses.ValueLoss(*mask.new_zeros(2))
        if advantages.returns is not None:
            separate = self._base.has_separate_critic
            with self._base.adapter(CRITIC) if separate else nullcontext():
                if separate:
                    values = self._base.values(*inputs, lower=rollout.lower, **shape)  # [b, r]
                value = losses.value_loss(values, old.values, advantages.returns, mask, recipe.cliprange_value)
                (recipe.vf_coef * value.loss / token_count).backward()
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
            kl=kl,
        )
