"""The table of health rules: what each looks for, and what it usually means. docs/health.md gives the sources."""

from collections.abc import Callable
from typing import NamedTuple

from ..contract.health import Rule
from ..contract.recipe import PPORecipe
from . import ppo_rules
from .ppo_rules import Seen
from .window import Window


class HealthRule(NamedTuple):
    """One rule of a PPO run."""

    name: Rule
    check: Callable[[Window, PPORecipe], Seen | None]
    means: str
    """What a finding usually means, a sentence."""


RULES: tuple[HealthRule, ...] = (
    HealthRule(
        "kl_negative",
        ppo_rules.kl_negative,
        "Responses are not sampled from the policy that is trained: forced or suppressed tokens, a banned end token, "
        "padding that is counted, or another temperature.",
    ),
    HealthRule(
        "kl_high",
        ppo_rules.kl_high,
        "The policy leaves the texts that the reward model knows; from here on a higher score is often no better text.",
    ),
    HealthRule(
        "ratio_off",
        ppo_rules.ratio_off,
        "The updates of a rollout move the policy too far, or log-probabilities of sampling and training differ.",
    ),
    HealthRule(
        "clipping_high",
        ppo_rules.clipping_high,
        "The updates of a rollout are too many or too large.",
    ),
    HealthRule(
        "policy_frozen",
        ppo_rules.policy_frozen,
        "The learning rate is too small for the dtype, or nothing that is trained takes part in the response.",
    ),
    HealthRule(
        "entropy_collapse",
        ppo_rules.entropy_collapse,
        "Responses become alike, and PPO has nothing left to compare.",
    ),
    HealthRule(
        "entropy_high",
        ppo_rules.entropy_high,
        "The prompts are not in the format that the base was trained with, or are of another kind.",
    ),
    HealthRule(
        "no_end",
        ppo_rules.no_end,
        "The prompt format or end token is not that of the base, `response_length` is short for the task, or length "
        "pays; the reward model scores cut texts, which it was not trained on.",
    ),
    HealthRule(
        "reward_by_length",
        ppo_rules.reward_by_length,
        "The reward prefers long texts, and the policy learns that alone.",
    ),
    HealthRule(
        "reward_by_repetition",
        ppo_rules.reward_by_repetition,
        "The policy has found that repeating itself pays.",
    ),
    HealthRule(
        "scores_alike",
        ppo_rules.scores_alike,
        "There is nothing to learn from: the reward is constant or saturated, the responses are all the same, or the "
        "reward model has lost its head or reads another format.",
    ),
    HealthRule(
        "scores_out_of_range",
        ppo_rules.scores_out_of_range,
        "The reward model extrapolates: its head was lost, its format is another one, or the policy has left its data.",
    ),
    HealthRule(
        "value_loss_spike",
        ppo_rules.value_loss_spike,
        "One batch was far off, or the critic diverges; advantages are noise until it recovers.",
    ),
    HealthRule(
        "critic_useless",
        ppo_rules.critic_useless,
        "The critic adds noise to the advantages instead of removing it.",
    ),
    HealthRule(
        "updates_skipped",
        ppo_rules.updates_skipped,
        "Updates explode: the learning rate is too high, or the batch too small.",
    ),
)
