"""The mathematics, against numbers worked by hand and against plain-Python loops."""

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stackllama_engine.train.ppo import losses
from stackllama_engine.train.ppo.update import explained_variance, moments, whiten

ONES = torch.ones(1, 4)


def test_gae_of_a_single_reward_at_the_end() -> None:
    # δ = [0, 0, 0.9·1 − 0, 1 − 1] with values = rewards = [0, 0, 0, 1]; A_t = δ_t + 0.9·0.95·A_{t+1}
    # A_2 = 0.9; A_1 = 0.855 · 0.9 = 0.7695; A_0 = 0.855 · 0.7695 = 0.6579225
    values = rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    advantages, returns = losses.gae(values, rewards, ONES, gamma=0.9, lam=0.95)
    torch.testing.assert_close(advantages, torch.tensor([[0.6579225, 0.7695, 0.9, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[0.6579225, 0.7695, 0.9, 1.0]]))


def test_gae_never_sees_padding() -> None:
    values = torch.tensor([[0.5, 0.2, 99.0, -99.0]])
    rewards = torch.tensor([[0.1, 1.0, 99.0, 99.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    advantages, returns = losses.gae(values, rewards, mask, gamma=1.0, lam=0.95)
    # the last real token: 1.0 − 0.2 = 0.8; before it: 0.1 + 0.2 − 0.5 + 0.95·0.8 = 0.56
    torch.testing.assert_close(advantages, torch.tensor([[0.56, 0.8, 0.0, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[1.06, 1.0, 0.0, 0.0]]))


@given(st.integers(1, 6), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**31 - 1))
@settings(max_examples=50, deadline=None)
def test_gae_equals_the_definition(length: int, gamma: float, lam: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values, rewards = torch.randn(2, 1, length, generator=generator, dtype=torch.float64)
    advantages, _ = losses.gae(values, rewards, torch.ones(1, length, dtype=torch.float64), gamma, lam)
    value = [*values[0].tolist(), 0.0]
    delta = [rewards[0, t].item() + gamma * value[t + 1] - value[t] for t in range(length)]
    expected = [sum((gamma * lam) ** k * delta[t + k] for k in range(length - t)) for t in range(length)]
    assert advantages[0].tolist() == pytest.approx(expected, abs=1e-9)


def test_adaptive_controller() -> None:
    controller = losses.KLController(0.2, target=6.0, horizon=10_000)
    coefficients: list[float] = []
    # errors 12/6 − 1 = 1 and 3/6 − 1 = −0.5, clipped to ±0.2; then 6.6/6 − 1 = 0.1; each times 256/10,000 = 0.0256:
    # 0.2 · 1.00512 = 0.201024; · 0.99488 = 0.19999476; · 1.00256 = 0.20050674
    for kl in (12.0, 3.0, 6.6):
        controller.update(kl, responses=256)
        coefficients.append(controller.coef)
    assert coefficients == pytest.approx([0.201024, 0.1999948, 0.2005067], abs=1e-7)


def test_fixed_controller_never_moves() -> None:
    controller = losses.KLController(0.2, target=None, horizon=10_000)
    controller.update(100.0, 256)
    assert controller.coef == 0.2


def test_kl_estimators() -> None:
    logp, ref = torch.tensor([0.5, 0.2, 0.1]), torch.tensor([0.4, 0.3, 0.0])
    torch.testing.assert_close(losses.kl_per_token(logp, ref, "k1"), torch.tensor([0.1, -0.1, 0.1]))
    # ½ · (±0.1)² = 0.005
    torch.testing.assert_close(losses.kl_per_token(logp, ref, "k2"), torch.tensor([0.005, 0.005, 0.005]))
    k3 = [math.exp(-0.1) - 1 + 0.1, math.exp(0.1) - 1 - 0.1, math.exp(-0.1) - 1 + 0.1]
    torch.testing.assert_close(losses.kl_per_token(logp, ref, "k3"), torch.tensor(k3))


def test_k1_and_k3_are_unbiased_and_k3_is_never_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.5, 0.3]).double()
    true = float((p * (p / q).log()).sum())
    tokens = torch.multinomial(p, 200_000, replacement=True, generator=generator)
    for name in ("k1", "k3"):
        estimate = losses.kl_per_token(p.log()[tokens], q.log()[tokens], name)
        assert float(estimate.mean()) == pytest.approx(true, rel=0.02)
    assert float(losses.kl_per_token(p.log()[tokens], q.log()[tokens], "k3").min()) >= 0


def test_token_rewards_put_the_score_on_the_last_token() -> None:
    kl = torch.tensor([[0.1, 0.2, 0.3], [0.5, 9.0, 9.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    rewards = losses.token_rewards(torch.tensor([2.0, -1.0]), kl, mask, kl_coef=0.5)
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, -0.1, 1.85], [-1.25, 0.0, 0.0]]))


def test_masked_moments_ignore_padding() -> None:
    values = torch.tensor([[1.0, 2.0, 1000.0], [3.0, -1000.0, 1000.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    mean, var = moments(values, mask, alone)
    assert (float(mean), float(var)) == (2.0, 1.0)  # ((−1)² + 0² + 1²) / (3 − 1)


def test_whitening_shifts_the_mean_only_when_asked() -> None:
    values, mask = torch.tensor([[1.0, 2.0, 3.0, 77.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(whiten(values, mask, alone), torch.tensor([[-1.0, 0.0, 1.0, 0.0]]))
    kept = whiten(values, mask, alone, shift_mean=False)
    torch.testing.assert_close(kept, torch.tensor([[1.0, 2.0, 3.0, 0.0]]))  # mean 2 added back


def test_policy_loss_clips_on_both_sides() -> None:
    ratio = torch.tensor([[1.5, 0.5, 1.5, 0.5]])
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    result = losses.policy_loss(ratio.log(), torch.zeros(1, 4), advantages, ONES, cliprange=0.2)
    # A > 0: −min(r, 1.2) = −1.2, −0.5;  A < 0: max(r, 0.8) = 1.5, 0.8
    assert float(result.loss) == pytest.approx(-1.2 - 0.5 + 1.5 + 0.8)
    assert float(result.clipped) == 2.0  # the first and the last
    assert float(result.ratio) == pytest.approx(4.0)
    assert float(result.policykl) == pytest.approx(-2 * math.log(1.5) - 2 * math.log(0.5))


def test_policy_loss_clips_wider_above_where_asked() -> None:
    ratio = torch.tensor([[1.25, 1.5, 0.5, 0.5]])
    advantages = torch.tensor([[1.0, 1.0, -1.0, 1.0]])
    result = losses.policy_loss(ratio.log(), torch.zeros(1, 4), advantages, ONES, cliprange=0.2, epsilon_high=0.3)
    # below 1 it clips at 0.8 still: −1.25, −1.3, max(0.5, 0.8) = 0.8, −0.5
    assert float(result.loss) == pytest.approx(-1.25 - 1.3 + 0.8 - 0.5)
    assert float(result.clipped) == 2.0


def test_leave_one_out_compares_with_the_mean_of_the_others() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    # 1 − (2 + 6) / 2, 2 − (1 + 6) / 2, 6 − (1 + 2) / 2
    expected = torch.tensor([[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(losses.leave_one_out(rewards, torch.ones(2, 3)), expected)
    # a response without a score, whatever stands there, is in no baseline: 1 − 6 and 6 − 1; one alone has none
    rewards[0, 1] = torch.nan
    scored = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    found = losses.leave_one_out(rewards, scored)
    torch.testing.assert_close(found, torch.tensor([[-5.0, 0.0, 5.0], [0.0, 0.0, 0.0]]))


def test_group_relative_subtracts_the_mean_and_may_divide_by_the_deviation() -> None:
    rewards, everything = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]]), torch.ones(2, 3)
    plain = torch.tensor([[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(losses.group_relative(rewards, everything, scale=False), plain)
    std = math.sqrt((4 + 1 + 9) / 2)  # unbiased
    torch.testing.assert_close(losses.group_relative(rewards, everything, scale=True), plain / (std + 1e-4))
    rewards[0, 1] = torch.nan
    scored = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    found = losses.group_relative(rewards, scored, scale=False)
    torch.testing.assert_close(found, torch.tensor([[-2.5, 0.0, 2.5], [0.0, 0.0, 0.0]]))


def test_groups_without_spread_are_those_of_equal_scores() -> None:
    scores = torch.tensor([[5.3, 5.3], [5.3, 5.3 + 1e-6], [5.3, 5.31], [1.0, 2.0]])
    scored = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])  # the last is a score alone
    assert losses.without_spread(scores, scored).tolist() == [True, True, False, True]


def test_response_weights_make_a_token_mean_the_other_losses() -> None:
    token_losses = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]])
    lengths, tokens, responses = torch.tensor([3.0, 1.0]), torch.tensor(4.0), torch.tensor(2.0)

    def loss(kind: Literal["grpo", "bnpo", "dr_grpo"]) -> float:
        weights = losses.response_weights(kind, lengths, tokens, responses, longest=5)
        return float(losses.weighted_sum(token_losses, weights) / tokens)

    assert loss("bnpo") == pytest.approx(10 / 4)
    assert loss("grpo") == pytest.approx((6 / 3 + 4) / 2)
    assert loss("dr_grpo") == pytest.approx(10 / (2 * 5))


def test_equal_policies_have_ratio_one_and_no_kl() -> None:
    logprobs = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    result = losses.policy_loss(logprobs, logprobs, torch.ones(2, 3), mask, 0.2)
    assert (float(result.ratio), float(result.approxkl), float(result.clipped)) == (4.0, 0.0, 0.0)
    assert float(result.loss) == -4.0


def test_policy_loss_of_padding_is_nothing() -> None:
    mask = torch.tensor([[1.0, 0.0]])
    wild = losses.policy_loss(torch.tensor([[0.0, 50.0]]), torch.zeros(1, 2), torch.ones(1, 2), mask, 0.2)
    assert (float(wild.loss), float(wild.ratio)) == (-1.0, 1.0)


def test_value_loss_takes_the_worse_of_plain_and_clipped() -> None:
    values, old, returns = torch.tensor([[1.0, 0.1]]), torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    result = losses.value_loss(values, old, returns, torch.ones(1, 2), cliprange_value=0.2)
    # first: plain 0, clipped (0.2 − 1)² = 0.64; second: not clipped, 0.01
    assert float(result.loss) == pytest.approx(0.5 * (0.64 + 0.01))
    assert float(result.clipped) == 1.0


def test_explained_variance() -> None:
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 9.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert explained_variance(returns, returns, mask, alone) == 1.0
    assert explained_variance(torch.zeros(1, 4), returns, mask, alone) == 0.0
    assert explained_variance(torch.zeros(1, 4), torch.ones(1, 4), mask, alone) == 0.0


def test_moments_over_two_ranks_are_those_of_one() -> None:
    """Two ranks in turns: each reduction adds what the other rank would have brought."""
    values, mask = torch.tensor([[1.0, 2.0, 3.0, 77.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    both = torch.cat([values, values + 3]), torch.cat([mask, mask])
    other = iter([torch.tensor([3.0, 15.0]), ((values + 3 - 3.5) * mask).pow(2).sum()])
    mean, var = moments(values, mask, lambda part: part + next(other))
    expected = moments(*both, alone)
    assert (float(mean), float(var)) == (float(expected[0]), float(expected[1])) == (3.5, 3.5)


def alone(values: torch.Tensor) -> torch.Tensor:
    return values
