"""Rows that go through the model together: cut to their own length, alike in scoring and update, without waiting."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stackllama_engine.train.ppo.algorithm import Updater
from stackllama_engine.train.ppo.rollout import Advantages, Lengths, Rollout, pad_tokens, policy_outputs

from .test_sampling import policy
from .toy import ppo_recipe
from .update_kit import Keeper, Waits, alone, toy

CPU = torch.device("cpu")
PROMPTS = [[1, 5], [1, 7, 8, 9, 30], [1, 8, 30], [1, 9, 6, 4, 3, 12], [1, 6], [1, 9, 9, 9]]
RESPONSES = [[8, 2], [10, 2], [11, 40, 41, 42], [2], [5, 6, 7, 2], [9, 2]]


def test_packed_batches_are_of_like_length_and_hold_every_row_once() -> None:
    packs = list(Lengths([3, 9, 1, 5], [4, 4, 1, 9]).packed([0, 1, 2, 3], 2, CPU))
    assert [pack.indices.tolist() for pack in packs] == [[3, 1], [0, 2]]
    assert [(pack.prompt, pack.response) for pack in packs] == [(9, 9), (3, 4)]


def test_micro_batches_by_tokens_hold_no_more_of_them_than_allowed() -> None:
    lengths = Lengths([3, 9, 1, 5, 2], [4, 4, 1, 9, 1])  # 7, 13, 2, 14 and 3 tokens
    packs = list(lengths.packed(range(5), 1, CPU, tokens=28))
    assert [pack.indices.tolist() for pack in packs] == [[3, 1], [0, 4, 2]]
    assert [pack.width for pack in packs] == [14, 7]
    assert [pack.indices.tolist() for pack in lengths.packed(range(5), 1, CPU, tokens=13)] == [[3], [1], [0], [4, 2]]


def test_outputs_of_rows_cut_to_their_length_are_those_at_full_width(base: Path) -> None:
    shared = policy(base)
    ids, attention, mask = pad_tokens(PROMPTS, RESPONSES, 0, CPU)
    whole = shared.outputs(ids, attention, 4)
    for size, mini_batches in ((1, 1), (2, 1), (2, 2), (6, 1)):
        cut = policy_outputs(shared, ids, attention, 4, size, mini_batches=mini_batches)
        for column, full in zip(cut, whole, strict=True):
            torch.testing.assert_close(column * mask, full.detach() * mask, atol=1e-5, rtol=1e-5)


def test_no_row_is_wider_than_its_packed_batch(base: Path) -> None:
    shared = policy(base)
    ids, attention, _ = pad_tokens(PROMPTS, RESPONSES, 0, CPU)
    seen: list[tuple[int, ...]] = []
    outputs: Callable[..., Any] = shared.outputs
    shared.outputs = lambda tokens, *rest, **more: (seen.append(tuple(tokens.shape)), outputs(tokens, *rest, **more))[1]  # type: ignore[method-assign]
    policy_outputs(shared, ids, attention, 4, 2)
    assert seen == [(2, 5 + 4), (2, 6 + 4), (2, 4 + 2)]


@pytest.mark.parametrize("tokens", [None, 20])
def test_the_first_epoch_computes_the_recorded_numbers_again(base: Path, tokens: int | None) -> None:
    keys = () if tokens is None else ("max_prompt_length=7", f"max_tokens_per_micro_batch={tokens}")
    sizes = ("per_device_train_batch_size=2", "num_mini_batches=2", "gradient_accumulation_steps=2")
    recipe = ppo_recipe(base, "num_ppo_epochs=1", *sizes, *keys)
    shared = policy(base)
    ids, attention, mask = pad_tokens(PROMPTS, RESPONSES, 0, CPU)
    old = policy_outputs(shared, ids, attention, 4, 2, mini_batches=2, tokens=tokens)
    rollout = Rollout(ids, attention, mask, [], old, old.logprobs, torch.zeros(len(mask)))
    some = torch.linspace(-1, 1, mask.numel()).view_as(mask)
    advantages = Advantages(kl=some, advantages=some, returns=some)
    updater = Updater(recipe, shared, Keeper(shared.trainable(), 0.0), alone)
    found = updater.update(rollout, advantages, torch.Generator()).metrics()
    assert (found["ppo/updates"], found["val/ratio"], found["policy/approxkl_avg"]) == (2, 1.0, 0.0)


def test_a_micro_batch_waits_only_where_transformers_looks_at_its_rows(base: Path) -> None:
    one = toy(base, "per_device_train_batch_size=2", "gradient_accumulation_steps=2")
    advantages = one.advantages()
    updater = Updater(one.recipe, one.base, Keeper(one.base.trainable(), 0.0), alone)
    for rows in list(one.rollout.lengths.packed([0, 1, 2, 3], 2, CPU)):
        ids = rows.select_tokens(one.rollout.input_ids, 4)[:, : rows.width]
        with Waits() as in_trunk:  # for positions, where there is no mask
            one.base.hidden(ids, None, torch.arange(ids.shape[1]).expand_as(ids))
        with Waits() as waits:
            updater._micro_batch(one.rollout, advantages, rows, one.rollout.mask.sum())
        assert waits.seen == in_trunk.seen
