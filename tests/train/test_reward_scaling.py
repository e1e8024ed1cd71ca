"""Running statistics of scores, and scores in their units; several ranks are threads that add up in turns."""

import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stackllama_engine.train.ppo import losses
from stackllama_engine.train.ppo.losses import Moments
from stackllama_engine.train.ppo.rewards import RewardScaling


def alone(values: Tensor) -> Tensor:
    return values


def scaled_with_metrics(scaling: RewardScaling, scores: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Update, scale and measure in the order of a PPO step."""
    scaling.update(scores)
    return scaling.scale(scores), scaling.metrics(scores)


class Ranks:
    """A sum over ranks, each a thread that calls it as often as the others do."""

    def __init__(self, count: int) -> None:
        self._parts: list[Tensor] = []
        self._lock = threading.Lock()
        self._barrier = threading.Barrier(count)

    def reduce(self, values: Tensor) -> Tensor:
        with self._lock:
            self._parts.append(values)
        self._barrier.wait(timeout=60)
        total = torch.stack(self._parts).sum(0)
        if self._barrier.wait(timeout=60) == 0:
            self._parts.clear()
        self._barrier.wait(timeout=60)
        return total


def test_scaling_by_hand() -> None:
    scaling = RewardScaling(True, None, alone)
    # 1 and 3: mean 2, deviation √((1 + 1) / 1) = √2
    scaled, metrics = scaled_with_metrics(scaling, torch.tensor([1.0, 3.0]))
    assert scaled.tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5], rel=1e-3)
    assert metrics == pytest.approx({"objective/score_mean": 2.0, "objective/score_std": 2**0.5})
    # 1, 3, 5 and 7: mean 4, deviation √((9 + 1 + 1 + 9) / 3); what came before counts
    scaled, metrics = scaled_with_metrics(scaling, torch.tensor([5.0, 7.0]))
    assert scaled.tolist() == pytest.approx([1 / (20 / 3) ** 0.5, 3 / (20 / 3) ** 0.5], rel=1e-3)
    assert scaling.moments.count == 4


@given(st.lists(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=5), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_merged_moments_are_those_of_all_numbers(batches: list[list[float]]) -> None:
    scaling = RewardScaling(True, None, alone)
    for batch in batches:
        scaling.update(torch.tensor(batch, dtype=torch.float64))
    everything = torch.tensor([number for batch in batches for number in batch], dtype=torch.float64)
    assert scaling.moments.mean == pytest.approx(float(everything.mean()), abs=1e-8)
    std = float(everything.std()) if len(everything) > 1 else 0.0
    assert scaling.moments.std == pytest.approx(std, abs=1e-6)


def test_moments_of_nothing_change_nothing() -> None:
    seen = Moments(3, 1.0, 2.0)
    assert Moments().merge(seen) == seen == seen.merge(Moments())
    assert Moments().merge(Moments()) == Moments()


def test_equal_scores_are_scaled_to_zero() -> None:
    scaled, _ = scaled_with_metrics(RewardScaling(True, None, alone), torch.full((7,), 0.1))
    assert scaled.abs().max() < 1e-3


def test_scaling_on_two_ranks_equals_one() -> None:
    batches = torch.tensor([[1.0, 2.0, 9.0, -4.0], [0.5, 0.25, 3.0, 8.0]])
    one, ranks = RewardScaling(True, 1.0, alone), Ranks(2)
    two = [RewardScaling(True, 1.0, ranks.reduce) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        for batch in batches:
            expected, metrics = scaled_with_metrics(one, batch)
            parts = threads.map(lambda rank, batch=batch: scaled_with_metrics(two[rank], batch[rank::2]), range(2))
            for rank, (scaled, rank_metrics) in enumerate(list(parts)):
                torch.testing.assert_close(scaled, expected[rank::2])
                assert rank_metrics == pytest.approx(metrics)


def test_clipping_is_in_units_after_normalisation() -> None:
    # of eight zeros and an 8: mean 8/9, deviation √((8·(8/9)² + (64/9)²) / 8) = 8/3; the 8 is at (64/9) / (8/3) = 2.67
    scores = torch.tensor([0.0] * 8 + [8.0])
    scaled, metrics = scaled_with_metrics(RewardScaling(True, 2.0, alone), scores)
    assert scaled.tolist() == pytest.approx([-1 / 3] * 8 + [2.0], rel=1e-3)
    assert metrics["objective/score_clipfrac"] == pytest.approx(1 / 9)
    raw, metrics = scaled_with_metrics(RewardScaling(False, 2.0, alone), scores)
    assert raw.tolist() == [0.0] * 8 + [2.0]
    assert metrics.keys() == {"objective/score_clipfrac"}


def test_scaling_that_is_off_changes_nothing() -> None:
    scores = torch.tensor([3.0, -5.0])
    scaling = RewardScaling(False, None, alone)
    assert scaled_with_metrics(scaling, scores) == (scores, {}) and scaling.moments == Moments()


def test_moments_are_plain_json() -> None:
    seen = Moments(3.0, 0.1, 1 / 3)
    assert msgspec.json.decode(msgspec.json.encode(seen), type=Moments) == seen
    assert losses.normalise(torch.tensor([0.1]), seen).tolist() == pytest.approx([0.0], abs=1e-6)
