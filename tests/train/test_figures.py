"""What a rollout comes to, by hand."""

import pytest
import torch

from stackllama_engine.train.ppo.figures import objective
from stackllama_engine.train.ppo.rollout import Rollout
from stackllama_engine.train.ppo.scorer import Answer
from stackllama_engine.train.ppo.shared_base import Outputs


def rollout() -> Rollout:
    """Two responses, of two tokens and of one that did not end."""
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    logprobs = torch.tensor([[-1.0, -2.0], [-4.0, -100.0]])
    old = Outputs(logprobs, torch.zeros(2, 2), torch.zeros(2, 2))
    return Rollout(
        input_ids=torch.zeros(2, 3, dtype=torch.int64), attention_mask=torch.ones(2, 3, dtype=torch.int64), mask=mask,
        answers=[Answer("?", "a b", True), Answer("?", "c", False)], old=old, ref_logprobs=logprobs,
        scores=torch.tensor([3.0, 1.0]), opinions={"rewards/model": torch.tensor([5.0, 2.0])},
    )  # fmt: skip


def test_means_over_the_responses_of_all_ranks() -> None:
    scores, kl = torch.tensor([2.0, 1.0]), torch.tensor([0.5, 1.5])  # what PPO sees is not what the judges said
    rows = [{"utility": 1.0}, {"utility": 0.0}]
    twice = lambda values: values * 2  # noqa: E731 - another rank with the same rollout
    means, count = objective(rollout(), scores, kl, rows, 0.2, twice)
    assert count == 4
    assert means == pytest.approx(
        {
            "objective/scores": 2.0, "objective/kl": 1.0, "objective/entropy": 3.5,  # (1 + 2 and 4) / 2
            "objective/rlhf_reward": 1.3,  # (2 + 1) / 2 - 0.2 * 1
            "objective/non_score_reward": -0.2, "response_length": 1.5, "val/num_eos_tokens": 2.0,
            "val/num_tokens": 6.0, "rewards/model": 3.5, "demo/true_utility": 0.5,
        }
    )  # fmt: skip


def test_only_the_demo_knows_the_true_utility() -> None:
    means, count = objective(rollout(), torch.zeros(2), torch.zeros(2), [{}, {}], 0.2, lambda values: values)
    assert count == 2 and "demo/true_utility" not in means
