"""Every key of rewards, advantages and update does what its help says; what it does in numbers is worked by hand."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stackllama_engine.train.ppo import losses
from stackllama_engine.train.ppo.response_text import ResponseText
from stackllama_engine.train.ppo.rewards import final_scores
from stackllama_engine.train.ppo.rollout import Advantages
from stackllama_engine.train.ppo.update import moments

from .toy import ppo_recipe
from .update_kit import Toy, alone, toy


def still(toy: Toy) -> Advantages:
    """Advantages that ask for nothing."""
    zeros = torch.zeros_like(toy.rollout.mask)
    return Advantages(kl=zeros, advantages=zeros, returns=toy.rollout.old.values)


def norms(toy: Toy) -> tuple[float, float]:
    """Of the newest gradient: that of the adapter, that of the value head."""
    head = toy.base.value_head.weight.numel()
    return float(toy.gradients[-1][:-head].norm()), float(toy.gradients[-1][-head:].norm())


# scores


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("missing_eos_penalty=null",), [2.0, 5.0]),
        ((), [2.0, 4.0]),  # a reward model scores
        (("reward_model_path=null", "reward_funcs=mine:score"), [2.0, 5.0]),
        (("reward_baseline=0.5",), [1.5, 3.5]),
        (("missing_eos_penalty=3",), [2.0, 2.0]),
        (("missing_eos_penalty=3", "reward_baseline=0.5"), [1.5, 1.5]),
        (("missing_eos_reward=-1",), [2.0, -1.0]),
        (("missing_eos_reward=-1", "reward_baseline=0.5"), [1.5, -1.0]),  # replaced is replaced
    ],
)
def test_scores_as_ppo_sees_them(tmp_path: Path, keys: tuple[str, ...], expected: list[float]) -> None:
    texts = [ResponseText("", "", True), ResponseText("", "", False)]
    recipe = ppo_recipe(tmp_path, *keys)
    assert final_scores(recipe, torch.tensor([2.0, 5.0]), texts).tolist() == expected


# rewards and advantages


def test_kl_estimator_and_coefficient(base: Path) -> None:
    for name in ("k1", "k2", "k3"):
        one = toy(base, f"kl_estimator={name}", "whiten_advantages=false", "lam=1")
        rollout, mask = one.rollout, one.rollout.mask
        kl = losses.masked(losses.kl_per_token(rollout.old.logprobs, rollout.ref_logprobs, name), mask)
        advantages = one.advantages(kl_coef=0.3)
        torch.testing.assert_close(advantages.kl, kl)
        assert advantages.returns is not None
        # with γ = λ = 1 the return of the first token is the sum of all rewards
        torch.testing.assert_close(advantages.returns[:, 0], rollout.scores - 0.3 * kl.sum(1), atol=1e-5, rtol=1e-5)


def test_gamma_and_lambda(base: Path) -> None:
    one = toy(base, "gamma=0.9", "lam=0.8", "whiten_advantages=false")
    rewards = losses.token_rewards(one.rollout.scores, one.advantages().kl, one.rollout.mask, 0.2)
    expected, _ = losses.gae(one.rollout.old.values, rewards, one.rollout.mask, 0.9, 0.8)
    torch.testing.assert_close(one.advantages().advantages, expected)


def test_whitened_advantages(base: Path) -> None:
    whitened, plain = toy(base), toy(base, "whiten_advantages=false")
    mask = plain.rollout.mask
    mean, var = moments(whitened.advantages().advantages, mask, alone)
    assert (float(mean), float(var)) == pytest.approx((0.0, 1.0), abs=1e-5)
    mean, var = moments(plain.advantages().advantages, mask, alone)
    assert abs(float(var) - 1) > 0.1
    expected = losses.masked((plain.advantages().advantages - mean) / var.sqrt(), mask)
    torch.testing.assert_close(whitened.advantages().advantages, expected, atol=1e-5, rtol=1e-5)


def test_whitened_rewards_keep_their_mean(base: Path) -> None:
    """γ = λ = 1 and no whitening of advantages: what the return loses from one token to the next is its reward."""
    keys = ("lam=1", "whiten_advantages=false")
    rewards: list[Tensor] = []
    for more in ("false", "true"):
        one = toy(base, *keys, f"whiten_rewards={more}")
        returns = one.advantages().returns
        assert returns is not None
        padded = torch.nn.functional.pad(returns, (0, 1))
        rewards.append(padded[:, :-1] - padded[:, 1:])
    mask = one.rollout.mask  # type: ignore[possibly-undefined]
    mean, var = moments(rewards[0], mask, alone)
    kept, unit = moments(rewards[1], mask, alone)
    assert float(kept) == pytest.approx(float(mean), abs=1e-5)
    assert float(unit) == pytest.approx(1.0, abs=1e-4) and abs(float(var) - 1) > 0.1


# the update


def test_ratio_starts_at_one_and_moves(base: Path) -> None:
    one = toy(base, "num_ppo_epochs=3")
    facts = one.update(one.advantages(), lr=0.01).metrics()
    assert (facts["val/ratio_first"], facts["policy/approxkl_first"]) == (1.0, 0.0)
    assert facts["policy/approxkl_avg"] > 0
    assert facts["ppo/updates"] == 3


def test_approxkl_grows_from_epoch_to_epoch(base: Path) -> None:
    totals = [0.0]
    for epochs in range(1, 5):
        one = toy(base, f"num_ppo_epochs={epochs}")
        totals.append(epochs * one.update(one.advantages(), lr=0.003).metrics()["policy/approxkl_avg"])
    first, *later = (after - before for before, after in itertools.pairwise(totals))
    assert first == 0.0
    assert 0 < later[0] < later[1] < later[2]


def test_epochs_and_mini_batches_are_optimizer_steps(base: Path) -> None:
    one = toy(base, "num_ppo_epochs=3", "num_mini_batches=2", "per_device_train_batch_size=2")
    assert one.update(one.advantages()).updates == 6 == len(one.gradients)


def test_cliprange_takes_the_gradient_of_what_moved_too_far(base: Path) -> None:
    for cliprange, moves in ((0.2, False), (0.6, True)):
        one = toy(base, f"cliprange={cliprange}", "vf_coef=0", "early_stopping=false")
        one.with_old(logprobs=one.rollout.old.logprobs - math.log(1.5))  # ratio 1.5 everywhere
        advantages = replace(still(one), advantages=one.rollout.mask)
        facts = one.update(advantages).metrics()
        assert facts["val/ratio"] == pytest.approx(1.5, rel=1e-4)
        assert facts["policy/clipfrac_avg"] == float(not moves)
        assert (norms(one)[0] > 0) is moves


def test_value_clipping_takes_the_gradient_of_a_value_that_moved_too_far(base: Path) -> None:
    for cliprange, moves in ((0.2, False), (2.0, True)):
        one = toy(base, f"cliprange_value={cliprange}")
        values = one.rollout.old.values
        one.with_old(values=values - 1)  # it moved by 1 towards its return since
        facts = one.update(replace(still(one), returns=values + 10)).metrics()
        assert facts["val/clipfrac_avg"] == float(not moves)
        assert (norms(one)[1] > 0) is moves


def test_value_coefficient_weighs_the_value_loss(base: Path) -> None:
    heads: list[float] = []
    for weight in (0.1, 0.4, 0.0):
        one = toy(base, f"vf_coef={weight}")
        one.update(replace(still(one), returns=one.rollout.old.values + 0.1))
        heads.append(norms(one)[1])
    assert heads[1] == pytest.approx(4 * heads[0], rel=1e-4)
    assert heads[0] > 0 and heads[2] == 0


def test_entropy_bonus_is_the_gradient_of_entropy(base: Path) -> None:
    silent = toy(base)
    silent.update(still(silent))
    assert norms(silent) == (0.0, 0.0)
    one = toy(base, "ent_coef=0.5")
    one.update(still(one))
    rollout, width = one.rollout, one.rollout.mask.shape[1]
    positions = (rollout.attention_mask.cumsum(1) - 1).clamp(min=0)
    hidden = one.base.hidden(rollout.input_ids, rollout.attention_mask, positions)
    entropy = torch.distributions.Categorical(logits=one.base.logits(hidden[:, -width - 1 : -1])).entropy()
    mean = (entropy * rollout.mask).sum() / rollout.mask.sum()
    parts = torch.autograd.grad(-0.5 * mean, one.base.trainable(), allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(one.gradients[0], torch.cat([part.flatten() for part in parts]), atol=1e-6, rtol=1e-3)


def test_a_policy_that_moved_too_far_ends_the_epochs(base: Path) -> None:
    # old − new is 0.2 on every token: more than 1.5 × 0.1, less than 1.5 × 0.2
    for keys, stops in ((("target_kl=0.1",), True), (("target_kl=0.2",), False)):
        one = toy(base, "early_stopping=true", "num_ppo_epochs=3", *keys)
        one.with_old(logprobs=one.rollout.old.logprobs + 0.2)
        statistics = one.update(one.advantages())
        assert (statistics.stopped_early, statistics.updates) == ((True, 0) if stops else (False, 3))
        assert statistics.policykl == pytest.approx(0.2, abs=1e-5)
    on = toy(base, "early_stopping=false", "num_ppo_epochs=3")
    on.with_old(logprobs=on.rollout.old.logprobs + 0.2)
    assert on.update(on.advantages()).updates == 3


def test_a_ratio_that_exploded_is_skipped(base: Path) -> None:
    for threshold, updates in ((10, 0), (30, 1)):
        one = toy(base, f"ratio_threshold={threshold}")
        one.with_old(logprobs=one.rollout.old.logprobs - math.log(20.0))
        before = [parameter.detach().clone() for parameter in one.base.trainable()]
        statistics = one.update(one.advantages(), lr=1.0)
        assert (statistics.updates, statistics.skipped) == (updates, 1 - updates)
        same = all(torch.equal(a, b) for a, b in zip(before, one.base.trainable(), strict=True))
        assert same is (updates == 0)


def test_gradients_are_clipped_to_their_norm(base: Path) -> None:
    """Policy and critic apart: what the critic wants does not shorten the policy's step."""
    free, held = toy(base), toy(base, "max_grad_norm=1e-3")
    free_stats, held_stats = free.update(free.advantages()), held.update(held.advantages())
    norms = [free_stats.grad_norm, free_stats.value_grad_norm]
    assert [held_stats.grad_norm, held_stats.value_grad_norm] == pytest.approx(norms)  # reported as they were
    assert min(norms) > 1e-2 and norms[0] != pytest.approx(norms[1])
    head = free.base.value_head.weight.numel()
    expected = [part * (1e-3 / norm) for part, norm in zip(split(free.gradients[0], head), norms, strict=True)]
    torch.testing.assert_close(held.gradients[0], torch.cat(expected), rtol=1e-3, atol=1e-9)


def split(row: Tensor, head: int) -> tuple[Tensor, Tensor]:
    """Split a row of gradients into the policy's and the value head's, which is last."""
    return row[:-head], row[-head:]
