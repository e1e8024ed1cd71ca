"""Metrics of a rollout, computed by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stackllama_engine.contract.recipe import PPORecipe
from stackllama_engine.train.ppo.algorithm import compute_advantages
from stackllama_engine.train.ppo.response_text import ResponseText
from stackllama_engine.train.ppo.rewards import RewardScaling, final_scores
from stackllama_engine.train.ppo.rollout import Rollout
from stackllama_engine.train.ppo.rollout_metrics import Scores, objective, throughput
from stackllama_engine.train.ppo.shared_base import Outputs


def recipe(**keys: Any) -> PPORecipe:
    return PPORecipe(**({"model_name_or_path": "m", "reward_model_path": "r", "missing_eos_penalty": 0.0} | keys))


def rollout() -> Rollout:
    """Two responses, of two tokens and of one that did not end, to prompts of two tokens and of one."""
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    logprobs = torch.tensor([[-1.0, -2.0], [-4.0, -100.0]])
    old = Outputs(logprobs, torch.zeros(2, 2), torch.zeros(2, 2))
    return Rollout(
        input_ids=torch.zeros(2, 4, dtype=torch.int64),
        attention_mask=torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0]]),
        mask=mask,
        texts=[ResponseText("?", "a b", True), ResponseText("?", "c", False)],
        old=old,
        ref_logprobs=torch.tensor([[-1.5, -2.0], [-5.5, 0.0]]),
        scores=torch.tensor([3.0, 1.0]),
        components={"rewards/model": torch.tensor([5.0, 2.0])},
    )


def alone(values: Tensor) -> Tensor:
    return values


def metrics_of(keys: PPORecipe, found: Rollout) -> dict[str, float]:
    """As a PPO step computes them."""
    scaling = RewardScaling(keys.normalize_reward, keys.cliprange_reward, alone)
    scaling.update(found.scores)
    scaled = scaling.scale(found.scores)
    scores = final_scores(keys, scaled, found.texts)
    penalty = compute_advantages(keys, found, scores, 0.2, alone).kl.sum(1)
    return objective(found, Scores(found.scores, scaled, scores), penalty, [{}, {}], keys, 0.2, alone)[0]


def test_objective_is_a_mean_over_the_responses_of_all_ranks() -> None:
    raw = torch.tensor([3.0, 1.0])
    scores, penalty = Scores(raw, raw, torch.tensor([2.0, 1.0])), torch.tensor([0.5, 1.5])
    rows = [{"utility": 1.0}, {"utility": 0.0}]
    twice = lambda values: values * 2  # noqa: E731 - another rank with the same rollout
    means, count = objective(rollout(), scores, penalty, rows, recipe(), 0.2, twice)
    assert count == 4
    assert means == pytest.approx(
        {
            "objective/scores": 2.0,
            "objective/penalties": -0.5,
            "objective/non_score_reward": -0.2,
            "objective/rlhf_reward": 1.3,  # (2 + 1) / 2 - 0.2 * 1
            "objective/kl": 1.0,
            "objective/entropy": 3.5,  # (1 + 2 and 4) / 2
            "response_length": 1.5,
            "val/num_eos_tokens": 2.0,
            "val/num_tokens": 6.0,
            "val/num_prompt_tokens": 6.0,
            "rewards/model": 3.5,
            "demo/true_utility": 0.5,
        }
    )


def test_only_the_demo_knows_the_true_utility() -> None:
    assert "demo/true_utility" not in metrics_of(recipe(), rollout())


@pytest.mark.parametrize(
    ("keys", "penalties"),
    [
        ({}, 0.0),
        ({"reward_baseline": 0.5}, -0.5),
        ({"missing_eos_penalty": 3.0, "reward_baseline": 0.5}, -2.0),
        ({"missing_eos_penalty": None, "missing_eos_reward": -1.0}, -1.0),  # the second one's 1 becomes -1
        ({"missing_eos_penalty": None, "missing_eos_reward": -1.0, "normalize_reward": True}, None),
        ({"normalize_reward": True, "cliprange_reward": 0.5, "missing_eos_penalty": 3.0, "kl_estimator": "k3"}, -1.5),
    ],
)
def test_the_reward_is_the_sum_of_its_visible_parts(keys: dict[str, Any], penalties: float | None) -> None:
    made = recipe(**keys)
    means = metrics_of(made, rollout())
    scaled = made.normalize_reward or made.cliprange_reward is not None
    assert ("objective/scaled_scores" in means) == scaled
    score = means["objective/scaled_scores" if scaled else "objective/scores"]
    parts = score + means["objective/penalties"] + means["objective/non_score_reward"]
    assert means["objective/rlhf_reward"] == pytest.approx(parts)
    assert means["objective/scores"] == 2.0  # raw, whatever becomes of them
    if penalties is not None:
        assert means["objective/penalties"] == pytest.approx(penalties)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_is_k1_and_the_penaltys_estimate_has_its_own_name(estimator: str) -> None:
    means = metrics_of(recipe(kl_estimator=estimator), rollout())
    assert means["objective/kl"] == pytest.approx((0.5 + 1.5) / 2)
    named = {name for name in means if name.startswith("objective/kl_")}
    assert named == (set() if estimator == "k1" else {f"objective/kl_{estimator}"})
    if estimator == "k2":
        assert means["objective/kl_k2"] == pytest.approx((0.125 + 1.125) / 2)
        assert means["objective/non_score_reward"] == pytest.approx(-0.2 * means["objective/kl_k2"])


def test_all_tokens_are_counted_once_and_responses_apart() -> None:
    found = throughput(metrics_of(recipe(), replace(rollout())), 0.5)
    assert found == {"tokens_per_second": 12.0, "response_tokens_per_second": 6.0}
