"""Padding never enters a number or a gradient, and micro-batches, whatever their size, add up to the same update."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stackllama_engine.train.ppo import losses
from stackllama_engine.train.ppo.rollout import policy_outputs, sequence_sum
from stackllama_engine.train.ppo.shared_base import SharedBase
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


@pytest.mark.parametrize("masks", [False, True])
def test_every_row_begins_at_position_0_and_padding_follows_it(base: Path, masks: bool) -> None:
    """A model with rotary positions hides a shift; one with learned positions would not."""
    one = toy(base)
    one.base.masks_padding = masks
    seen: list[tuple[Tensor, Tensor, Tensor | None]] = []
    one.base.trunk.register_forward_pre_hook(
        lambda _, __, named: seen.append((named["input_ids"], named["position_ids"], named["attention_mask"])),
        with_kwargs=True,
    )
    one.update(one.advantages())
    ((ids, positions, mask),) = seen
    longest_first = [[1, 5, 6, 9, 8, 9, 2], [1, 8, 30, 11, 40, 41, 42], [1, 7, 10, 2], [1, 9, 2]]
    assert [row[: len(text)].tolist() for row, text in zip(ids, longest_first, strict=True)] == longest_first
    assert ids.shape == (4, 7)  # not 4 + 4, the longest prompt and the longest response
    assert all(row.tolist() == list(range(7)) for row in positions)
    assert masks == (mask is not None)
    if mask is not None:
        assert mask.sum(1).tolist() == [len(text) for text in longest_first]


def test_with_a_mask_and_without_one_an_update_is_the_same(base: Path) -> None:
    keys = ("ent_coef=0.1", "value_adapter=true")
    without, masked = toy(base, *keys), toy(base, *keys)
    masked.base.masks_padding = True
    facts, gradient = update_of(without)
    again, other = update_of(masked)
    assert again == pytest.approx(facts, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-6)


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in float64, also what is computed in float32 on purpose; the head from all logits at once."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    monkeypatch.setattr(SharedBase, "_chosen_by_frozen_matrix", lambda *_: None)
    build = SharedBase.__init__

    def build_in_float64(self: SharedBase, *inputs: Any) -> None:
        build(self, *inputs)
        self.model.double()
        self.value_head.double()

    monkeypatch.setattr(SharedBase, "__init__", build_in_float64)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
def test_micro_batches_by_tokens_are_the_same_update(base: Path) -> None:
    keys = ("ent_coef=0.1", "value_adapter=true", "max_prompt_length=5", "random_length_limits=[4, 5]")
    by_rows = update_of(toy(base, *keys))
    for tokens, sizes in ((8, [1, 1, 2]), (14, [2, 2]), (28, [4])):
        one = toy(base, *keys, f"max_tokens_per_micro_batch={tokens}")
        batches = list(one.rollout.lengths.packed(range(4), 4, torch.device("cpu"), tokens))
        assert [len(batch.indices) for batch in batches] == sizes
        facts, gradient = update_of(one)
        assert facts == pytest.approx(by_rows[0], rel=1e-12, abs=1e-12)
        assert gradient.dtype == torch.float64
        torch.testing.assert_close(gradient, by_rows[1], rtol=1e-10, atol=1e-14)
