"""Padding never enters a number or a gradient, and micro-batches, whatever their size, add up to the same update."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stackllama_engine.train.ppo import losses
from stackllama_engine.train.ppo.rollout import policy_outputs, sequence_sum
from stackllama_engine.train.ppo.update import explained_variance, moments, whiten

from .update_kit import Toy, alone, toy

LENGTHS = (4, 1, 3, 2)
MASK = torch.tensor([[1.0] * length + [0.0] * (4 - length) for length in LENGTHS])
GARBAGE = (7.0, -1e30, float("inf"), float("nan"))

Formula = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


def _value_loss(values: Tensor, old: Tensor, returns: Tensor) -> tuple[Tensor, ...]:
    return losses.value_loss(values, old, returns, MASK, 0.2)


def _policy_loss(new: Tensor, old: Tensor, advantages: Tensor) -> tuple[Tensor, ...]:
    return losses.policy_loss(new, old, advantages, MASK, 0.2)


def _targets(values: Tensor, kl: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    rewards = losses.token_rewards(torch.arange(4.0), kl, MASK, 0.3)
    return rewards, *losses.gae(values, whiten(rewards, MASK, alone, shift_mean=False), MASK, 0.9, 0.8)


def _statistics(values: Tensor, returns: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    explained = torch.tensor(explained_variance(values.detach(), returns.detach(), MASK, alone))
    return *moments(values, MASK, alone), whiten(values, MASK, alone), sequence_sum(returns, MASK), explained


@pytest.mark.parametrize("formula", [_policy_loss, _value_loss, _targets, _statistics])
def test_formulas_never_see_padding(formula: Formula) -> None:
    columns = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))

    def results(garbage: float) -> list[Tensor]:
        inputs = torch.where(MASK > 0, columns, torch.tensor(garbage)).requires_grad_()
        outputs = formula(*inputs.unbind())
        (gradient,) = torch.autograd.grad(sum(out.sum() for out in outputs if out.requires_grad), [inputs])  # type: ignore[arg-type]
        assert not gradient[:, MASK == 0].any()
        return [*(out.detach() for out in outputs), gradient]

    clean = results(0.0)
    assert all(torch.isfinite(tensor).all() for tensor in clean)
    for garbage in GARBAGE:
        assert all(torch.equal(one, other) for one, other in zip(clean, results(garbage), strict=True)), garbage


def update_of(one: Toy) -> tuple[dict[str, float], Tensor]:
    facts = one.update(one.advantages()).metrics()
    return facts, one.gradients[0]


@pytest.mark.parametrize("seed", range(3))
def test_an_update_never_sees_padding(base: Path, seed: int) -> None:
    """Other tokens, values and log-probabilities under padding, left and right: not one bit of the update differs."""
    keys = ("ent_coef=0.1", "whiten_rewards=true", f"value_adapter={str(seed == 2).lower()}")
    clean, dirty = toy(base, *keys), toy(base, *keys)
    generator = torch.Generator().manual_seed(seed)
    rollout, mask = dirty.rollout, dirty.rollout.mask
    noise = torch.randint(3, 300, rollout.input_ids.shape, generator=generator)
    ids = torch.where(rollout.attention_mask > 0, rollout.input_ids, noise)
    assert not torch.equal(ids, rollout.input_ids)
    old = policy_outputs(dirty.base, ids, rollout.attention_mask, mask.shape[1], 4)
    for name, column in old._asdict().items():
        expected = getattr(clean.rollout.old, name)
        assert torch.equal(losses.masked(column, mask), losses.masked(expected, mask)), name

    def spoil(column: Tensor) -> Tensor:
        return torch.where(mask > 0, column, float("nan") if seed == 0 else 100.0 * seed)

    dirty.rollout = replace(
        rollout, input_ids=ids, old=old._make(map(spoil, old)), ref_logprobs=spoil(rollout.ref_logprobs)
    )
    facts, gradient = update_of(clean)
    spoilt, other = update_of(dirty)
    assert spoilt == facts
    assert torch.equal(gradient, other) and gradient.abs().sum() > 0


def test_accumulation_changes_nothing(base: Path) -> None:
    whole = toy(base, "ent_coef=0.1")
    facts, gradient = update_of(whole)
    for size, count in ((1, 4), (2, 2)):
        shape = (f"per_device_train_batch_size={size}", f"gradient_accumulation_steps={count}")
        other, parts = update_of(toy(base, "ent_coef=0.1", *shape))
        assert other == pytest.approx(facts, rel=1e-4, abs=1e-6)
        torch.testing.assert_close(parts, gradient, rtol=1e-4, atol=1e-6)


def test_positions_count_from_the_first_token_of_a_prompt(base: Path) -> None:
    """A model with rotary positions hides a shift; one with learned positions would not."""
    one = toy(base)
    seen: list[tuple[Tensor, Tensor]] = []
    one.base.trunk.register_forward_pre_hook(
        lambda _, __, named: seen.append((named["position_ids"], named["attention_mask"])), with_kwargs=True
    )
    one.update(one.advantages())
    for positions, mask in seen:
        for row, kept in zip(positions, mask.bool(), strict=True):
            assert row[kept].tolist() == list(range(int(kept.sum())))
    assert seen
