"""The sampler's log-probabilities beside the learner's."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from stackllama_engine.train.ppo.mismatch import SamplerCheck
from stackllama_engine.train.ppo.rollout import Rollout, pad_tokens, policy_outputs
from stackllama_engine.train.ppo.sampling import Responses, draw_noise, sample
from stackllama_engine.train.ppo.shared_base import SharedBase

from .toy import ppo_recipe

CPU = torch.device("cpu")
PROMPTS = [[1, 9], [1, 5, 6, 7, 8, 30], [1, 3, 4]]


class TwoRanks:
    """A session of two ranks, of which the other one sees the same or less; and its notices."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.reporter = SimpleNamespace(health=self.notices.append)

    def reduce(self, values: Tensor) -> Tensor:
        return values * 2

    def largest(self, values: Tensor) -> Tensor:
        return values


def moved(base: Path, *keys: str) -> SharedBase:
    torch.manual_seed(0)
    shared = SharedBase(ppo_recipe(base, "value_adapter=false", *keys), CPU)
    generator = torch.Generator().manual_seed(7)
    for parameter in shared.trainable():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return shared


def scored(shared: SharedBase, responses: Responses) -> Rollout:
    ids, attention, mask = pad_tokens(PROMPTS, responses, 0, CPU)
    old = policy_outputs(shared, ids, attention, mask.shape[1], 2)
    return Rollout(ids, attention, mask, [], old, old.logprobs, torch.zeros(len(PROMPTS)))


def check(base: Path, shared: SharedBase, *keys: str) -> tuple[SamplerCheck, list[str]]:
    session: Any = TwoRanks()
    return SamplerCheck(ppo_recipe(base, *keys), session, shared), session.notices


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_sampler_and_the_learner_agree_to_rounding(base: Path, temperature: float) -> None:
    shared = moved(base, f"temperature={temperature}")
    noise = [draw_noise(1, 0, index, (3, 9)) for index in range(3)]
    responses = sample(shared, PROMPTS, noise, stops=(2,), pad=0, micro_batch_size=2)
    assert [len(row) for row in responses.logprobs] == [len(row) for row in responses]
    compared, notices = check(base, shared)
    found = compared(0, responses, scored(shared, responses))
    assert 0 < found["sampling/logprob_difference"] < 1e-4 and 0 <= found["sampling/kl_mismatch"] < 1e-9
    assert notices == []


def test_a_sampler_of_another_policy_is_named_once(base: Path) -> None:
    shared = moved(base)
    noise = [draw_noise(1, 0, index, (3, 9)) for index in range(3)]
    with shared.reference():
        lost = sample(shared, PROMPTS, noise, stops=(2,), pad=0)  # as if the adapter were lost
    for parameter in shared.trainable():
        parameter.data *= 3
    compared, notices = check(base, shared)
    for step in range(2):
        found = compared(step, lost, scored(shared, lost))
        assert found["sampling/logprob_difference"] > 0.1 and found["sampling/kl_mismatch"] > 1e-4
    assert len(notices) == 1 and "step 1: the sampler does not draw from the policy that is trained" in notices[0]


def by_hand(base: Path, apart: float, *keys: str) -> tuple[dict[str, float], list[str]]:
    """Three tokens and one of padding, the second one apart."""
    learner = torch.tensor([[-1.0, -2.0], [-0.5, -7.0]])
    rollout: Any = SimpleNamespace(old=SimpleNamespace(logprobs=learner), mask=torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    shared: Any = SimpleNamespace(base=SimpleNamespace(dtype=torch.float32))
    compared, notices = check(base, shared, *keys)
    return compared(4, Responses([[1, 2], [3]], [[-1.0, -2.0 - apart], [-0.5]]), rollout), notices


def test_mismatch_metrics_are_as_computed_by_hand(base: Path) -> None:
    found, notices = by_hand(base, 0.25)
    k3 = 2.718281828**0.25 - 1 - 0.25  # r = exp(learner - sampler)
    assert found == pytest.approx({"sampling/kl_mismatch": k3 / 3, "sampling/logprob_difference": 0.25})
    assert len(notices) == 1 and "up to 0.25 nat" in notices[0] and "32-bit rounding explains 0.01" in notices[0]


@pytest.mark.parametrize(
    ("apart", "keys", "wrong"),
    [(0.25, ("bf16=true",), False), (0.6, ("bf16=true",), True), (0.005, (), False), (float("nan"), (), True)],
)
def test_what_rounding_explains_is_not_reported(base: Path, apart: float, keys: tuple[str, ...], wrong: bool) -> None:
    assert bool(by_hand(base, apart, *keys)[1]) == wrong
