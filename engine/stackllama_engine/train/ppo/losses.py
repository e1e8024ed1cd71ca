"""The mathematics of PPO for language models: tensors and plain numbers in, tensors and plain numbers out.

Shapes: ``B`` responses, ``R`` response positions. ``mask`` is 1.0 on response tokens and 0.0 on padding; padding,
be it NaN, never enters a result or a gradient.

In groups: ``G`` prompts with ``n`` responses each.

Sources: PPO arXiv:1707.06347; GAE arXiv:1506.02438; RLOO arXiv:2402.14740; GRPO arXiv:2402.03300; its variants
arXiv:2503.14476 and arXiv:2503.20783; fine-tuning from human preferences arXiv:1909.08593; the N implementation details
(https://huggingface.co/blog/the_n_implementation_details_of_rlhf_with_ppo).
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """Keep ``values`` on the mask, 0 elsewhere; a product would keep a NaN, in the value or in its gradient."""
    return torch.where(mask > 0, values, 0.0)


def whiten(values: Tensor, mean: Tensor, var: Tensor, shift_mean: bool = True, epsilon: float = 1e-8) -> Tensor:
    """Compute ``(values − mean) / √(var + ε)``, plus ``mean`` again unless ``shift_mean``; shape as ``values``."""
    whitened = (values - mean) * torch.rsqrt(var + epsilon)
    return whitened if shift_mean else whitened + mean


def kl_per_token(logprobs: Tensor, ref_logprobs: Tensor, estimator: Literal["k1", "k2", "k3"] = "k1") -> Tensor:
    """Estimate KL(policy ‖ reference) per token, from samples of the policy; ``[B, R]``.

    Source: http://joschu.net/blog/kl-approx.html.

    With ``log r = ref − policy``: k1 = −log r (unbiased, signed), k2 = ½ log² r, k3 = (r − 1) − log r (unbiased, ≥ 0).

    Args:
        logprobs: log-probability of each sampled token under the policy, ``[B, R]``.
        ref_logprobs: the same under the reference, ``[B, R]``.
    """
    log_ratio = ref_logprobs - logprobs  # [B, R]
    match estimator:
        case "k1":
            return -log_ratio
        case "k2":
            return 0.5 * log_ratio.pow(2)
        case "k3":
            return torch.expm1(log_ratio) - log_ratio


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Compute rewards per token, ``[B, R]``: −kl_coef · KL on every response token, plus the score on the last one.

    Args:
        scores: reward of each response, ``[B]``.
        kl: per-token KL, ``[B, R]``.
        mask: ``[B, R]``; every row has at least one 1.
    """
    rewards = -kl_coef * masked(kl, mask)  # [B, R]
    last = (torch.arange(mask.shape[1], device=mask.device) * mask).argmax(dim=1)  # [B], index of the last token
    rewards[torch.arange(len(scores), device=mask.device), last] += scores
    return rewards


def gae(values: Tensor, rewards: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Estimate advantages by GAE (arXiv:1506.02438, eq. 16), from the last token backwards.

    On the CPU wherever the tensors are: a few additions per token are less work than their kernel launches.

    Args:
        values: value of the state before each response token, ``[B, R]``.
        rewards: per-token rewards, ``[B, R]``.
        mask: ``[B, R]``, response tokens first; what follows a response's end has value 0.

    Returns:
        ``advantages`` and ``returns`` (= advantages + values), each ``[B, R]`` and 0 outside the mask.
    """
    device = values.device
    values, rewards, mask = values.cpu(), rewards.cpu(), mask.cpu()  # [B, R]
    values, rewards = masked(values, mask), masked(rewards, mask)  # [B, R]
    advantage = torch.zeros_like(values[:, 0])  # [B], A_t+1
    next_value = torch.zeros_like(values[:, 0])  # [B], V_t+1: 0 after the last token
    columns: list[Tensor] = []
    for position in reversed(range(values.shape[1])):
        delta = rewards[:, position] + gamma * next_value - values[:, position]  # [B], δ_t
        advantage = (delta + gamma * lam * advantage) * mask[:, position]  # [B], A_t; stays 0 until the last token
        next_value = values[:, position]
        columns.append(advantage)
    advantages = torch.stack(columns[::-1], dim=1)  # [B, R]
    return advantages.to(device), (advantages + values).to(device)


def leave_one_out(rewards: Tensor, scored: Tensor) -> Tensor:
    """Compute advantages ``[G, n]``: a response's reward minus the mean of the others' (arXiv:2402.14740, eq. 8).

    Args:
        rewards: of each response, ``[G, n]``.
        scored: 1 on responses that have a reward, ``[G, n]``; the others, and one that is alone, get the advantage 0.
    """
    rewards = masked(rewards, scored)  # [G, n]
    others = scored.sum(1, keepdim=True) - scored  # [G, n]
    baseline = (rewards.sum(1, keepdim=True) - rewards) / others.clamp(min=1)  # [G, n]
    return masked(rewards - baseline, scored * others)


def group_relative(rewards: Tensor, scored: Tensor, *, scale: bool) -> Tensor:
    """Compute advantages ``[G, n]``: a response's reward minus its group's mean (arXiv:2402.03300, section 4.1.2).

    Args:
        rewards: of each response, ``[G, n]``.
        scored: 1 on responses that have a reward, ``[G, n]``; the others get the advantage 0.
        scale: divide by the group's unbiased standard deviation plus 1e-4.
    """
    count = scored.sum(1, keepdim=True)  # [G, 1]
    mean = masked(rewards, scored).sum(1, keepdim=True) / count.clamp(min=1)  # [G, 1]
    deviations = masked(rewards - mean, scored)  # [G, n]
    if not scale:
        return deviations
    std = (deviations.pow(2).sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()  # [G, 1]
    return deviations / (std + 1e-4)


def without_spread(scores: Tensor, scored: Tensor) -> Tensor:
    """Return which groups, bool ``[G]``, have the same score everywhere, up to rounding, or at most one score.

    Args:
        scores: ``[G, n]``.
        scored: 1 on responses that have a score, ``[G, n]``.
    """
    highest = scores.masked_fill(scored == 0, -torch.inf).amax(1)  # [G]
    lowest = scores.masked_fill(scored == 0, torch.inf).amin(1)  # [G]
    return torch.isclose(highest, lowest) | (scored.sum(1) < 2)


def response_weights(
    loss_type: Literal["grpo", "bnpo", "dr_grpo"], lengths: Tensor, tokens: Tensor, responses: Tensor, longest: int
) -> Tensor | None:
    """Compute weights ``[B]`` by which a token mean becomes another of TRL's losses; None: it is that mean.

    The loss is ``Σ weight · token loss ÷ tokens``: with bnpo the mean over tokens, with grpo the mean over responses of
    their means over tokens, with dr_grpo the sum over tokens ÷ (responses × longest), arXiv:2503.20783.

    Args:
        loss_type: TRL's name.
        lengths: tokens of each response that are in the loss, ``[B]``.
        tokens: of the whole mini-batch in the loss, over all ranks; scalar.
        responses: of the whole mini-batch, those without a token in the loss included; scalar.
        longest: most tokens that a response may have.
    """
    match loss_type:
        case "bnpo":
            return None
        case "grpo":
            return tokens / (responses * lengths.clamp(min=1))
        case "dr_grpo":
            return tokens / (responses * longest).expand(len(lengths))


def weighted_sum(values: Tensor, weights: Tensor | None) -> Tensor:
    """Sum ``values``, ``[B, R]``, each row by its weight, ``[B]``; None: 1."""
    return values.sum() if weights is None else (values.sum(1) * weights).sum()


class PolicyLoss(NamedTuple):
    """Sums over the mask, to be divided by a token count; scalars."""

    loss: Tensor
    """By the weights of the responses."""
    clipped: Tensor
    """Tokens on which the clipped branch was the larger loss."""
    ratio: Tensor
    approxkl: Tensor
    """½ (log ratio)²."""
    policykl: Tensor
    """old − new log-probability."""


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    cliprange: float,
    epsilon_high: float | None = None,
    weights: Tensor | None = None,
) -> PolicyLoss:
    """Compute the clipped surrogate objective (arXiv:1707.06347, eq. 7), negated. Tensors are ``[B, R]``.

    Args:
        logprobs: of the policy in training.
        old_logprobs: of the policy that sampled.
        advantages: of each token.
        mask: tokens in the loss.
        cliprange: the ratio is clipped to 1 ± this.
        epsilon_high: to 1 plus this above, if it is given (arXiv:2503.14476, section 3.1).
        weights: of the responses in the loss, ``[B]``; None: 1.
    """
    log_ratio = masked(logprobs - old_logprobs, mask)  # [B, R]
    advantages = masked(advantages, mask)  # [B, R]
    ratio = log_ratio.exp()  # [B, R], new over old probability
    plain = -advantages * ratio  # [B, R]
    upper = 1.0 + (cliprange if epsilon_high is None else epsilon_high)
    clipped = -advantages * ratio.clamp(1.0 - cliprange, upper)  # [B, R]
    return PolicyLoss(
        # the larger loss is the smaller objective; 0 on padding
        loss=weighted_sum(torch.maximum(plain, clipped), weights),
        clipped=(clipped > plain).sum(),
        ratio=(ratio * mask).sum(),
        approxkl=(0.5 * log_ratio.pow(2)).sum(),
        policykl=-log_ratio.sum(),
    )


class ValueLoss(NamedTuple):
    """Sums over the mask, to be divided by a token count; scalars."""

    loss: Tensor
    clipped: Tensor


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange_value: float) -> ValueLoss:
    """Compute ½ max of plain and clipped squared error, the clip around the rollout's values. Inputs ``[B, R]``."""
    values, old_values, returns = masked(values, mask), masked(old_values, mask), masked(returns, mask)  # [B, R]
    clipped_values = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)  # [B, R]
    plain = (values - returns).pow(2)  # [B, R]
    clipped = (clipped_values - returns).pow(2)  # [B, R]
    return ValueLoss(
        loss=0.5 * torch.maximum(plain, clipped).sum(),
        clipped=(clipped > plain).sum(),
    )


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of all numbers so far; plain numbers, as they are saved."""

    count: float = 0.0
    mean: float = 0.0
    m2: float = 0.0

    @property
    def std(self) -> float:
        """Unbiased standard deviation; 0 of fewer than two numbers."""
        return math.sqrt(self.m2 / (self.count - 1)) if self.count > 1 else 0.0

    def merge(self, other: "Moments") -> "Moments":
        """Combine the moments of two sets of numbers (Chan, Golub & LeVeque, Stanford STAN-CS-79-773, 1979)."""
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * other.count / count,
            self.m2 + other.m2 + delta * delta * self.count * other.count / count,
        )


def normalise(scores: Tensor, moments: Moments, epsilon: float = 1e-4) -> Tensor:
    """Compute ``(scores − mean) / (std + ε)``, ``[B]``; ε keeps rounding of equal scores from becoming a signal."""
    return (scores - moments.mean) / (moments.std + epsilon)


class KLController:
    """The KL coefficient, fixed or adapted to a target (arXiv:1909.08593, section 2.2).

    Args:
        coef: initial coefficient.
        target: desired KL per response, or None to keep the coefficient fixed.
        horizon: responses over which it adapts.
    """

    def __init__(self, coef: float, target: float | None, horizon: int) -> None:
        self.coef = coef
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, responses: int) -> None:
        """Move the coefficient, given the mean KL per response of ``responses`` new responses.

        Proportional control in log space, the relative error clipped to ± 0.2.
        """
        if self.target is None:
            return
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.coef *= 1.0 + error * responses / self.horizon
