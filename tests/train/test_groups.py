"""Advantages from groups of responses to one prompt (`advantage: rloo | grpo`): by hand, and in whole runs."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stackllama_engine.contract import requests
from stackllama_engine.contract.errors import RecipeError, StageError
from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.launcher import launch, plan, resume
from stackllama_engine.train.ppo import trainer
from stackllama_engine.train.ppo.algorithm import Algorithm, Updater
from stackllama_engine.train.ppo.losses import KLController
from stackllama_engine.train.ppo.rollout import sequence_sum

from .in_process import PPO, at_call, attempt, finish
from .test_chat import Here
from .toy import PPO as REAL_PPO
from .toy import ppo_recipe, run_stage, wait_for
from .update_kit import Keeper, Toy, alone, toy

RLOO = ("advantage=rloo", "num_generations=2")
GRPO = ("advantage=grpo", "num_generations=2")
SCORES = torch.tensor([1.0, -0.5, 2.0, 0.25])
"""Of the toy's rollout: two groups of two."""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def of_responses(one: Toy, kl_coef: float = 0.2) -> Tensor:
    """Return the advantage of each response, which all of its tokens have, ``[B]``."""
    advantages, mask = one.advantages(kl_coef).advantages, one.rollout.mask
    assert torch.equal(advantages, advantages[:, :1] * mask)
    return advantages[:, 0]


# advantages


def test_rloo_compares_a_response_with_the_other_of_its_group(base: Path) -> None:
    torch.testing.assert_close(of_responses(toy(base, *RLOO), 0.0), torch.tensor([1.5, -1.5, 1.75, -1.75]))


def test_grpo_compares_a_response_with_the_mean_of_its_group(base: Path) -> None:
    torch.testing.assert_close(of_responses(toy(base, *GRPO), 0.0), torch.tensor([0.75, -0.75, 0.875, -0.875]))
    scaled = of_responses(toy(base, *GRPO, "scale_rewards=true"), 0.0)
    torch.testing.assert_close(scaled, torch.tensor([1.0, -1.0, 1.0, -1.0]) * 2**-0.5, atol=2e-4, rtol=0)


def test_kl_lowers_the_reward_unless_the_loss_holds_it(base: Path) -> None:
    one = toy(base, *RLOO)
    kl = sequence_sum(one.rollout.old.logprobs - one.rollout.ref_logprobs, one.rollout.mask)  # [B]
    rewards = (SCORES - 0.3 * kl).view(2, 2)
    torch.testing.assert_close(of_responses(one, 0.3), (rewards - rewards.flip(1)).flatten())
    in_loss = toy(base, *RLOO, "kl_in_loss=true")
    torch.testing.assert_close(of_responses(in_loss, 0.3), of_responses(in_loss, 0.0))


def test_an_abstained_response_enters_no_baseline(base: Path) -> None:
    one = toy(base, *RLOO, "num_generations=4")
    one.rollout = replace(one.rollout, abstained=torch.tensor([False, True, False, False]))
    expected = torch.tensor([1 - 2.25 / 2, 0.0, 2 - 1.25 / 2, 0.25 - 3 / 2])
    torch.testing.assert_close(of_responses(one, 0.0), expected)


def test_groups_without_spread_are_counted_before_the_kl(base: Path) -> None:
    one = toy(base, *RLOO)
    one.rollout = replace(one.rollout, scores=torch.tensor([1.0, 1.0, 2.0, 0.25]))
    zero_std = one.advantages(0.3).zero_std
    assert zero_std is not None and zero_std.tolist() == [True, False]


# the loss


def by_hand(one: Toy, loss_of: Any) -> Tensor:
    """Return the gradient of a loss of new log-probabilities, ``[B, R]``, over the policy's parameters."""
    rollout, base = one.rollout, one.base
    base.model.zero_grad()
    outputs = base.outputs(rollout.input_ids, rollout.attention_mask, rollout.responses)
    loss_of(outputs.logprobs).backward()
    gradient = torch.cat([p.grad.flatten() for p in base.trainable() if p.grad is not None])
    base.model.zero_grad()
    return gradient


@pytest.mark.parametrize("micro_batch", [4, 1])
@pytest.mark.parametrize("loss_type", ["bnpo", "grpo", "dr_grpo"])
def test_loss_types_and_kl_in_the_loss(base: Path, loss_type: str, micro_batch: int) -> None:
    sizes = (f"per_device_train_batch_size={micro_batch}", f"gradient_accumulation_steps={4 // micro_batch}")
    one = toy(base, *GRPO, f"loss_type={loss_type}", "kl_in_loss=true", *sizes)
    advantages, mask, reference = one.advantages(0.3), one.rollout.mask, one.rollout.ref_logprobs
    old = one.rollout.old.logprobs

    def loss(new: Tensor) -> Tensor:
        ratio, away = (new - old).exp(), reference - new  # the ratio is 1: nothing is clipped
        tokens = (-ratio * advantages.advantages + 0.3 * (away.exp() - away - 1)) * mask  # [B, R]
        match loss_type:
            case "bnpo":
                return tokens.sum() / mask.sum()
            case "grpo":
                return (tokens.sum(1) / mask.sum(1)).mean()
            case _:
                return tokens.sum() / (4 * 7)  # the toy's longest response: random_length_limits [4, 8)

    expected = by_hand(one, loss)
    stats = one.update(advantages)
    torch.testing.assert_close(one.gradients[0], expected, atol=1e-6, rtol=1e-4)
    metrics = stats.metrics(critic=False, kl_in_loss=True)
    kl = (reference - old).exp() - (reference - old) - 1
    assert metrics["loss/kl_avg"] == pytest.approx(float((kl * mask).sum() / mask.sum()), rel=1e-4)
    assert not {"loss/value_avg", "val/clipfrac_avg", "val/grad_norm"} & metrics.keys()


@pytest.mark.parametrize("key", ["mask_truncated_completions=true", "skip_zero_std_groups=true"])
def test_what_is_left_out_weighs_nothing_and_leaves_the_baseline(base: Path, key: str) -> None:
    one = toy(base, *RLOO, key, "ent_coef=0.1")
    if key.startswith("skip"):
        one.rollout = replace(one.rollout, scores=torch.tensor([1.0, 1.0, 2.0, 0.25]))
    kept = [0, 1, 3] if key.startswith("mask") else [2, 3]  # the third response has no end
    advantages, mask = one.advantages(0.0), one.rollout.mask
    all_of_them = toy(base, *RLOO)
    all_of_them.rollout = one.rollout
    torch.testing.assert_close(of_responses(one, 0.0), of_responses(all_of_them, 0.0))
    stats = one.update(advantages)
    assert float(stats.sums.tokens) == float(mask[kept].sum())
    found, rollout = one.gradients[0], one.rollout
    one.base.model.zero_grad()
    outputs = one.base.outputs(rollout.input_ids, rollout.attention_mask, rollout.responses)
    surrogate = (outputs.logprobs - rollout.old.logprobs).exp() * advantages.advantages  # [B, R]
    objective = ((surrogate + 0.1 * outputs.entropy) * mask)[kept].sum()
    (-objective / mask[kept].sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in one.base.trainable() if p.grad is not None])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_a_mini_batch_with_nothing_to_learn_makes_no_step(base: Path) -> None:
    one = toy(base, *RLOO, "skip_zero_std_groups=true")
    one.rollout = replace(one.rollout, scores=torch.ones(4))
    stats = one.update(one.advantages(0.0))
    assert (stats.updates, stats.skipped, one.gradients) == (0, 0, [])
    assert stats.metrics(critic=False)["ppo/updates"] == 0.0


@pytest.mark.parametrize("key", ["mask_truncated_completions=true", "skip_zero_std_groups=true"])
def test_a_canary_makes_an_update_of_what_is_left_out(base: Path, key: str) -> None:
    one = toy(base, *RLOO, key)
    cut = [text._replace(ended=False) for text in one.rollout.texts]
    one.rollout = replace(one.rollout, scores=torch.ones(4), texts=cut)
    keeper = Keeper(one.base.trainable(), 0.0)
    updater = Updater(one.recipe, one.base, keeper, alone)
    parts: Any = {"worker": None, "scaling": None, "run_on_all_ranks": SimpleNamespace(check_stop=lambda: None)}
    controller = KLController(0.2, None, 1)
    algorithm = Algorithm(recipe=one.recipe, controller=controller, updater=updater, reduce=alone, **parts)
    algorithm.learn_as_canary(one.rollout, torch.Generator())
    assert len(keeper.steps) == 1


def test_without_a_critic_only_the_policy_is_trained(base: Path) -> None:
    one = toy(base, *RLOO, "value_adapter=true")
    policy, critic = one.base.parameter_groups()
    assert critic == [] and len(one.base.trainable()) == len(policy)
    assert "critic" not in one.base.model.peft_config
    assert one.advantages().returns is None
    assert not one.rollout.old.values.any()


# the recipe


def test_groups_fill_a_step_whole(base: Path) -> None:
    with pytest.raises(RecipeError, match="`num_generations: 3` does not divide the 4 responses per device and step"):
        ppo_recipe(base, "advantage=rloo", "num_generations=3")
    assert ppo_recipe(base, "num_generations=3").group_size == 1  # of no effect with a critic
    with pytest.raises(RecipeError, match="loss_type=dapo"):
        ppo_recipe(base, "advantage=rloo", "loss_type=dapo")


def test_keys_without_effect_are_named_with_what_makes_them_so(base: Path) -> None:
    names = ("gae", "rloo", "grpo")
    gae, rloo, grpo = (ppo_recipe(base, f"advantage={name}", "kl_in_loss=true").unused for name in names)
    assert gae["num_generations"] == gae["scale_rewards"] == "advantage: gae" and "lam" not in gae
    assert rloo["lam"] == rloo["scale_rewards"] == "advantage: rloo" and "num_generations" not in rloo
    assert rloo["kl_estimator"] == "kl_in_loss: true"
    assert "scale_rewards" not in grpo
    fields = set(ppo_recipe(base).__struct_fields__)
    assert (gae.keys() | rloo.keys() | grpo.keys()) <= fields


# whole runs

EIGHT = ("per_device_train_batch_size=4", "gradient_accumulation_steps=2", "num_sample_generations=8")
RUN = (*PPO, *EIGHT, *RLOO, "mask_truncated_completions=false", "save_steps=1", "eval_steps=2")


def weights(run: RunDir) -> dict[str, Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def sampled(run: RunDir) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in run.samples_file.read_text().splitlines()]
    return [row for row in rows if "when" not in row]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, base: Path) -> RunDir:
    return finish(Home(tmp_path_factory.mktemp("straight")), base, Stage.PPO, *RUN)[0]


@pytest.mark.slow
def test_a_run_has_groups_and_no_critic(straight: RunDir) -> None:
    rows = sampled(straight)
    assert len(rows) == 3 * 8
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert one["question"] == other["question"] and one["response"] != other["response"]
    assert len({row["question"] for row in rows}) == 3 * 4
    files = {path.name for path in straight.path.rglob("*.safetensors")}
    assert files == {"adapter_model.safetensors", "policy.safetensors", "optimizer.safetensors"}
    assert not (straight.adapter / "critic").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "name", "call"), [(trainer.PPO, "_noise", 2), (Updater, "_mini_batch", 4)])
def test_stopped_and_resumed_equals_straight(
    home: Home, base: Path, straight: RunDir, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int
) -> None:
    """In the second rollout, and between two mini-batches of its update."""
    with attempt(home, base, Stage.PPO, *RUN) as first, monkeypatch.context() as patch:
        patch.setattr(owner, name, at_call(call, lambda: first.run.request("stop"), getattr(owner, name)))
        assert first.train() is None
    requests.forget_all(first.run)
    with attempt(home, base, Stage.PPO, *RUN, of=first.run) as second:
        assert second.train() is not None
    assert first.run.samples_file.read_text() == straight.samples_file.read_text()
    for key, tensor in weights(straight).items():
        assert torch.equal(weights(first.run)[key], tensor), key


@pytest.mark.slow
def test_a_resume_refuses_another_estimator(home: Home, base: Path, straight: RunDir) -> None:
    refused = "`advantage` rloo → grpo. Set it back in recipe.yaml, or start a new run"
    keys = (*RUN, "advantage=grpo")
    with attempt(home, base, Stage.PPO, *keys, of=straight) as one, pytest.raises(StageError, match=refused):
        one.train()


@pytest.mark.slow
def test_accumulation_and_micro_batches_change_nothing(home: Home, base: Path, straight: RunDir) -> None:
    sizes = ("per_device_train_batch_size=1", "gradient_accumulation_steps=8", "local_rollout_forward_batch_size=3")
    other, _ = finish(home, base, Stage.PPO, *RUN, *sizes)
    assert [row["response"] for row in sampled(other)] == [row["response"] for row in sampled(straight)]
    for name, tensor in weights(straight).items():
        torch.testing.assert_close(weights(other)[name], tensor, atol=2e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_step_without_a_response_in_the_loss_learns_nothing_and_says_so(home: Home, base: Path) -> None:
    keys = (*PPO, *RLOO, "max_steps=1", "random_length_limits=[1, 2]", "mask_truncated_completions=true")
    with attempt(home, base, Stage.PPO, *keys) as one:
        assert one.train() is not None
    assert one.metrics("ppo/updates") == {1: 0.0} and one.metrics("ppo/skipped_updates") == {1: 0.0}
    assert "step 1: nothing was learned, because no response was in the loss" in one.health
    assert not any(tensor.any() for name, tensor in weights(one.run).items() if "lora_B" in name)


@pytest.mark.slow
def test_a_policy_with_a_critic_is_continued_without_it(home: Home, base: Path) -> None:
    first, _ = finish(home, base, Stage.PPO, *PPO, "max_steps=1")
    assert (first.adapter / "critic").is_dir()
    keys = (*PPO, *GRPO, "max_steps=1", f"policy_adapter_path={first.adapter}")
    run, _ = finish(Home(home.path.parent / "other"), base, Stage.PPO, *keys)
    assert not (run.adapter / "critic").exists() and not (run.adapter / "value_head.safetensors").exists()


@pytest.mark.long
def test_through_the_real_command(shared_home: Home, base: Path, reward_model: Path) -> None:
    """Stopped and resumed equals straight, two processes equal one, and the result is merged and chatted with."""
    inputs = (f"model_name_or_path={base}", f"reward_model_path={reward_model}")
    keys = (*REAL_PPO, *RLOO, *inputs, "num_sample_generations=4")
    straight = run_stage(shared_home, Stage.PPO, *keys)

    broken = launch(plan(shared_home, load_recipe(Stage.PPO, straight.recipe_file)))
    requests.write(broken, "pause")  # served at the first step boundary
    events = broken.attempt_dir(1) / "events.jsonl"
    wait_for(broken, lambda _: any(event.phase == "paused" for event in EventReader(events).read()))
    broken.request("stop")
    state = wait_for(broken, lambda state: state.has_ended)
    assert (state.phase, state.exit_code) == ("stopped", 75)
    resume(shared_home, broken.id)
    assert wait_for(broken, lambda state: state.attempt == 2 and state.has_ended).phase == "finished"
    assert broken.samples_file.read_text() == straight.samples_file.read_text()
    for name, tensor in weights(straight).items():
        assert torch.equal(weights(broken)[name], tensor), name

    halves = ("per_device_train_batch_size=2", "gradient_accumulation_steps=1", "num_processes=2")
    two = run_stage(shared_home, Stage.PPO, *keys, *halves)
    for name, tensor in weights(straight).items():
        torch.testing.assert_close(weights(two)[name], tensor, atol=2e-4, rtol=1e-3)

    merged = run_stage(shared_home, Stage.MERGE, f"adapter_path={straight.id}")
    result = merged.read_json("result.json")
    assert 0 < result["difference"] < 0.5 * result["difference_from_base"]
    for run in (straight, merged):
        before, after = Here(run).greedy("base", "tuned")
        assert before and after
