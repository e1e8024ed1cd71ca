"""A critic with an adapter of its own: its values, its gradients, and how it is saved and continued."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import get_scheduler

from stackllama_engine.contract.errors import StageError
from stackllama_engine.contract.prompt_format import PromptFormat
from stackllama_engine.train import models
from stackllama_engine.train.ppo.algorithm import Updater
from stackllama_engine.train.ppo.losses import KLController
from stackllama_engine.train.ppo.rewards import RewardScaling
from stackllama_engine.train.ppo.rollout import Advantages, policy_outputs
from stackllama_engine.train.ppo.shared_base import CRITIC, POLICY, VALUE_FILE, SharedBase
from stackllama_engine.train.ppo.state import Evaluations, Trainables
from stackllama_engine.train.ppo.update import UpdateStats

from .toy import ppo_recipe
from .update_kit import CPU, Toy, alone, toy

OWN = "value_adapter=true"


def parts(one: Toy, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a row over everything trained: the policy's, the critic's adapter's, the head's."""
    sizes = [sum(p.numel() for n, p in one.base.model.named_parameters() if f".{a}." in n) for a in (POLICY, CRITIC)]
    policy, critic, head = row.split([*sizes, one.base.value_head.weight.numel()])
    return policy, critic, head


def values_only(one: Toy) -> Advantages:
    """Nothing to gain, and values that are wrong."""
    advantages = one.advantages()
    return replace(advantages, advantages=torch.zeros_like(advantages.advantages), returns=one.rollout.old.values + 1)


def outputs(one: Toy) -> tuple[Tensor, Tensor]:
    rollout = one.rollout
    found = policy_outputs(one.base, rollout.input_ids, rollout.attention_mask, rollout.responses, 4)
    return found.logprobs, found.values


def shift(one: Toy, adapter: str) -> None:
    for name, parameter in one.base.model.named_parameters():
        if f".{adapter}." in name:
            parameter.data += 0.1


def test_values_come_from_the_critics_adapter_and_probabilities_from_the_policys(base: Path) -> None:
    one = toy(base, OWN)
    logprobs, values = outputs(one)
    shift(one, POLICY)
    assert torch.equal(outputs(one)[1], values) and not torch.equal(outputs(one)[0], logprobs)
    logprobs, values = outputs(one)
    shift(one, CRITIC)
    assert torch.equal(outputs(one)[0], logprobs) and not torch.equal(outputs(one)[1], values)
    with one.base.reference():  # has no critic, and leaves it and the policy as they were
        assert not outputs(one)[1].any() and not torch.equal(outputs(one)[0], logprobs)
    assert torch.equal(outputs(one)[0], logprobs)


def test_the_value_loss_reaches_the_critic_alone(base: Path) -> None:
    detached, own = toy(base), toy(base, OWN)
    detached.update(values_only(detached))
    own.update(values_only(own))
    policy, critic, head = parts(own, own.gradients[0])
    assert not policy.any() and critic.any() and head.any()
    head = detached.gradients[0][-detached.base.value_head.weight.numel() :]
    assert head.any() and not detached.gradients[0][: -len(head)].any()


@pytest.mark.parametrize("more", [(), ("gradient_checkpointing=true",)])
def test_gradients_are_those_of_either_loss_alone(base: Path, more: tuple[str, ...]) -> None:
    together, policy = toy(base, OWN, *more), toy(base, OWN, "vf_coef=0")
    keys = ("per_device_train_batch_size=2", "gradient_accumulation_steps=2")
    pieces = toy(base, OWN, *keys, *more)
    for one in (together, policy, pieces):
        one.update(one.advantages())
    values = toy(base, OWN)
    advantages = values.advantages()
    values.update(replace(advantages, advantages=torch.zeros_like(advantages.advantages)))
    expected = policy.gradients[0] + values.gradients[0]
    assert parts(together, expected)[0].any() and parts(together, expected)[1].any()
    torch.testing.assert_close(together.gradients[0], expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(pieces.gradients[0], expected, atol=1e-6, rtol=1e-4)


def test_everything_that_is_asked_to_train_is_stepped(base: Path) -> None:
    one = toy(base, OWN)
    asked = {id(p) for p in (*one.base.model.parameters(), *one.base.value_head.parameters()) if p.requires_grad}
    assert {id(p) for p in one.base.trainable()} == asked
    one.update(one.advantages())
    assert all(part.any() for part in parts(one, one.gradients[0]))


@pytest.mark.parametrize("separate", ["true", "false"])
def test_an_update_without_returns_trains_the_policy_alike_and_leaves_the_critic(base: Path, separate: str) -> None:
    keys = (f"value_adapter={separate}", "num_ppo_epochs=3", "early_stopping=false")
    with_critic, without = toy(base, *keys), toy(base, *keys)
    critic_before = [parameter.detach().clone() for parameter in without.base.parameter_groups()[1]]
    policy_before = [parameter.detach().clone() for parameter in without.base.parameter_groups()[0]]
    stats: list[UpdateStats] = []
    for one, advantages in ((with_critic, with_critic.advantages()), (without, without.advantages())):
        if one is without:
            advantages = replace(advantages, returns=None)
        optimizer = torch.optim.AdamW(one.base.trainable(), lr=0.01, weight_decay=0.1)  # would decay a gradient of 0
        stats.append(Updater(one.recipe, one.base, optimizer, alone).update(one.rollout, advantages, torch.Generator()))
    (policy, critic), (expected, trained_critic) = without.base.parameter_groups(), with_critic.base.parameter_groups()
    assert [s.updates for s in stats] == [3, 3]
    assert all(torch.equal(*pair) for pair in zip(policy, expected, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(policy, policy_before, strict=True))
    assert all(parameter.isfinite().all() for parameter in policy)
    assert all(torch.equal(*pair) for pair in zip(critic, critic_before, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(trained_critic, critic_before, strict=True))
    metrics = stats[1].metrics()
    assert metrics["grad_norm"] == stats[0].metrics()["grad_norm"] > 0
    assert [metrics[name] for name in ("loss/value_avg", "val/clipfrac_avg", "val/grad_norm")] == [0.0, 0.0, 0.0]


def save(one: Toy, path: Path) -> None:
    head: dict[str, Any] = {VALUE_FILE: dict(one.base.value_head.state_dict())}
    tokenizer = models.load_tokenizer(one.recipe.model_name_or_path)
    models.save_adapter(one.base.model, tokenizer, path, one.recipe, PromptFormat(), one.base.saved, **head)


def continued(base: Path, path: Path, *keys: str) -> Toy:
    """Another run that begins with a saved adapter, before its own first step."""
    one = toy(base)
    recipe = ppo_recipe(base, f"policy_adapter_path={path}", "lora_r=4", "value_adapter=false", *keys)
    return replace(one, recipe=recipe, base=SharedBase(recipe, CPU))


def test_a_saved_critic_is_continued(base: Path, tmp_path: Path) -> None:
    one = toy(base, OWN)
    save(one, tmp_path / "adapter")
    found = outputs(continued(base, tmp_path / "adapter", OWN))
    torch.testing.assert_close(found[0], outputs(one)[0])
    torch.testing.assert_close(found[1], outputs(one)[1])
    with pytest.raises(StageError, match="set `value_adapter: true`"):
        continued(base, tmp_path / "adapter")


def test_a_head_trained_on_the_policys_trunk_gets_a_copy_of_it(base: Path, tmp_path: Path) -> None:
    one = toy(base)
    save(one, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / CRITIC).exists()
    torch.testing.assert_close(outputs(continued(base, tmp_path / "adapter", OWN))[1], outputs(one)[1])


def trainables(one: Toy) -> Trainables:
    optimizer = torch.optim.AdamW(one.base.trainable(), lr=0.1)
    scheduler = get_scheduler("linear", optimizer, 0, 10)
    return Trainables(one.base, optimizer, scheduler, KLController(0.2, None, 1), RewardScaling(False, None, alone))


def test_a_checkpoint_holds_the_critic(base: Path, tmp_path: Path) -> None:
    one, other = toy(base, OWN), toy(base, OWN)
    shift(one, CRITIC)
    trainables(one).write(tmp_path, 3, Evaluations({}))
    assert not torch.equal(outputs(other)[1], outputs(one)[1])
    trainables(other).load(tmp_path)
    assert torch.equal(outputs(other)[1], outputs(one)[1]) and torch.equal(outputs(other)[0], outputs(one)[0])
