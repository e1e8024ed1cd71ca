"""Metrics of a rollout that the health rules read, computed by hand."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

from stackllama_engine.contract.recipe import PPORecipe
from stackllama_engine.train.ppo.response_metrics import common_range, response_metrics, seen_range
from stackllama_engine.train.ppo.response_text import ResponseText
from stackllama_engine.train.ppo.rollout import Rollout
from stackllama_engine.train.ppo.shared_base import Outputs
from stackllama_engine.train.session import Session


def rollout(scores: list[float]) -> Rollout:
    """Responses of 1, 2 and 6 tokens; the last one repeats itself and ends."""
    ids: list[list[int]] = [[5], [5, 6], [7, 7, 7, 7, 7, 1]]
    mask = torch.zeros(3, 6)
    for row, tokens in enumerate(ids):
        mask[row, : len(tokens)] = 1
    return Rollout(
        input_ids=torch.zeros(3, 7, dtype=torch.int64),
        attention_mask=torch.ones(3, 7, dtype=torch.int64),
        mask=mask,
        texts=[ResponseText("?", "", row == 2, ids=tokens) for row, tokens in enumerate(ids)],
        old=Outputs(torch.zeros(3, 6), torch.zeros(3, 6), torch.zeros(3, 6)),
        ref_logprobs=torch.zeros(3, 6),
        scores=torch.tensor(scores),
        components={"reward/model": torch.tensor([-1.0, 0.0, 3.0])},
    )


def alone(values: Tensor) -> Tensor:
    return values


def test_spread_length_and_repetition_are_over_the_responses_of_all_ranks() -> None:
    scores = [1.0, 2.0, 6.0]
    metrics = response_metrics(rollout(scores), (-0.5, 2.0), alone)
    assert metrics == pytest.approx(
        {
            "objective/scores_std": (14 / 3) ** 0.5,
            "val/length_correlation": 1.0,  # the score is the length
            "val/repetition": (0 + 0 + 2 / 3) / 3,  # of three equal 3-grams two occurred before
            "val/scores_outside_range": 2 / 3,
        }
    )
    assert response_metrics(rollout(scores), (-0.5, 2.0), lambda values: 2 * values) == pytest.approx(metrics)


def test_correlation_is_missing_where_scores_do_not_vary_and_the_range_where_it_is_not_known() -> None:
    assert response_metrics(rollout([1.0, 1.0, 1.0]), None, alone) == {
        "objective/scores_std": 0.0,
        "val/repetition": pytest.approx(2 / 9),
    }


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (json.dumps({"score_range": [-1, 2]}), (-1.0, 2.0)),
        (json.dumps({"accuracy": 0.5}), None),
        (json.dumps({"score_range": [1]}), None),
        ("not JSON", None),
        (None, None),
    ],
)
def test_range_is_read_beside_the_reward_models_adapter(
    tmp_path: Path, content: str | None, expected: tuple[float, float] | None
) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    recipe = PPORecipe(model_name_or_path="m", reward_model_path=str(tmp_path / "adapter"))
    assert seen_range(recipe) == expected


def test_all_ranks_have_the_range_that_the_first_one_reads() -> None:
    recipe = PPORecipe(model_name_or_path="m", reward_funcs=["a:b"])  # what this rank reads is None

    def session(first: list[float] | None) -> Session:
        return cast("Session", SimpleNamespace(gather=lambda rows: [first, *rows]))

    assert common_range(recipe, session([-1.0, 2.0])) == (-1.0, 2.0)
    assert common_range(recipe, session(None)) is None


def test_no_range_without_a_reward_model() -> None:
    assert seen_range(PPORecipe(model_name_or_path="m", reward_funcs=["a:b"])) is None
