"""Advantages and losses of groups against those of TRL's RLOO and GRPO trainers, of the release that is installed.

Advantages stand in the middle of ``_generate_and_score_completions``: its statements are cut out of TRL's source and
run on the case. A loss is a method, called with tensors in place of a model's outputs.
"""

import ast
import inspect
import textwrap
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from trl.trainer import grpo_trainer, rloo_trainer
from trl.trainer.utils import nanstd

from stackllama_engine.train.ppo import losses

pytestmark = pytest.mark.slow

GENERATOR = torch.Generator().manual_seed(17)
LENGTHS = torch.tensor([6, 2, 4, 1, 5, 3])
MASK = (torch.arange(6) < LENGTHS[:, None]).double()  # [B, R]
LONGEST = 9
BETA = 0.3
Kind = Literal["grpo", "bnpo", "dr_grpo"]


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def trl_advantages(module: Any, trainer: type, rewards: Tensor, *, beta: float, scale: str = "none") -> dict[str, Any]:
    """Run TRL's statements on rewards, ``[B]``; return its names, among them ``advantages`` and ``is_std_zero``."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(trainer._generate_and_score_completions)))
    function: Any = tree.body[0]
    assigned = [
        target.id if isinstance(statement, ast.Assign) and isinstance(target := statement.targets[0], ast.Name) else ""
        for statement in function.body
    ]
    block = function.body[assigned.index("unscorable_mask") : assigned.index("process_slice")]
    names: dict[str, Any] = {
        "torch": torch,
        "nanstd": nanstd,
        "gather": lambda values: values,
        "device": rewards.device,
        "num_generations": 3,
        "rewards_per_func": rewards.unsqueeze(1),
        "old_per_token_logps": OLD,
        "ref_per_token_logps": REFERENCE,
        "completion_mask": MASK,
        "self": SimpleNamespace(
            reward_weights=torch.ones(1, dtype=torch.float64),
            reward_clip_range=None,
            beta=beta,
            normalize_advantages=False,
            multi_objective_aggregation="sum_then_normalize",
            scale_rewards=scale,
        ),
    }
    exec(compile(ast.Module(block, []), module.__name__, "exec"), names)
    return names


OLD, REFERENCE = normal(6, 6, scale=0.5), normal(6, 6, scale=0.5)
REWARDS = {
    "all scored": torch.tensor([1.0, -2.0, 0.5, 3.0, 3.0, 3.0], dtype=torch.float64),
    "one abstained": torch.tensor([1.0, float("nan"), 0.5, 3.0, 2.0, -1.0], dtype=torch.float64),
    "one scored": torch.tensor([1.0, -1.0, 0.5, float("nan"), 2.0, float("nan")], dtype=torch.float64),
}


@pytest.mark.parametrize("case", REWARDS)
@pytest.mark.parametrize("beta", [0.0, BETA])
def test_leave_one_out_is_that_of_trl(case: str, beta: float) -> None:
    rewards = REWARDS[case]
    theirs = trl_advantages(rloo_trainer, rloo_trainer.RLOOTrainer, rewards, beta=beta)
    kl = (losses.kl_per_token(OLD, REFERENCE, "k1") * MASK).sum(1)  # [B]
    scored = (~rewards.isnan()).double().view(2, 3)
    mine = losses.leave_one_out((rewards - beta * kl).view(2, 3), scored)
    torch.testing.assert_close(mine.flatten(), theirs["advantages"])


@pytest.mark.parametrize("case", REWARDS)
@pytest.mark.parametrize("scale", [False, True])
def test_group_relative_advantages_are_those_of_trl(case: str, scale: bool) -> None:
    rewards = REWARDS[case]
    how = "group" if scale else "none"
    theirs = trl_advantages(grpo_trainer, grpo_trainer.GRPOTrainer, rewards, beta=BETA, scale=how)
    scored = (~rewards.isnan()).double().view(2, 3)
    mine = losses.group_relative(rewards.view(2, 3), scored, scale=scale)
    torch.testing.assert_close(mine.flatten(), theirs["advantages"])
    if case == "all scored":
        zero_std = losses.without_spread(rewards.view(2, 3), scored)
        assert zero_std.repeat_interleave(3).tolist() == theirs["is_std_zero"].tolist() == [False] * 3 + [True] * 3


def stub(new: Tensor, **more: Any) -> Any:
    """Make what ``_compute_loss`` reads of its trainer."""
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, torch.zeros_like(new), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        use_vllm=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST,
        epsilon_low=0.2,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(reduce=lambda one, **_: one, gather=lambda one: one, num_processes=1),
        _metrics=defaultdict[str, Any](lambda: defaultdict[str, Any](list)),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        **more,
    )


def inputs_of(advantages: Tensor, mask: Tensor) -> dict[str, Tensor]:
    tokens = torch.zeros(6, 6, dtype=torch.int64)
    return {
        "prompt_ids": tokens,
        "prompt_mask": tokens,
        "completion_ids": tokens,
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": OLD,
        "old_logps": (OLD * mask).sum(1),
        "ref_per_token_logps": REFERENCE,
        "num_items_in_batch": mask.sum(),
    }


def my_loss(kind: Kind, new: Tensor, advantages: Tensor, mask: Tensor, high: float | None, beta: float) -> Tensor:
    """Compute the loss as the update does, in one micro-batch."""
    tokens = mask.sum()
    weights = losses.response_weights(kind, mask.sum(1), tokens, torch.tensor(6.0), LONGEST)
    policy = losses.policy_loss(new, OLD, advantages.unsqueeze(1) * mask, mask, 0.2, high, weights)
    kl = losses.masked(losses.kl_per_token(new, REFERENCE, "k3"), mask)
    return (policy.loss + beta * losses.weighted_sum(kl, weights)) / tokens


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("high", [None, 0.28])
@pytest.mark.parametrize(("theirs", "kind"), [("bnpo", "bnpo"), ("dapo", "bnpo"), ("grpo", "grpo"), ("dr_grpo",) * 2])
def test_losses_and_their_gradients_are_those_of_trls_grpo(
    theirs: str, kind: Kind, high: float | None, masked: bool
) -> None:
    advantages, mask = normal(6), MASK.clone()
    if masked:
        mask[2] = 0  # a truncated response
    new = (OLD + normal(6, 6, scale=0.3)).requires_grad_()
    trainer = stub(new, loss_type=theirs, beta=BETA, epsilon_high=0.2 if high is None else high)
    expected = grpo_trainer.GRPOTrainer._compute_loss(trainer, None, inputs_of(advantages, mask))
    mine = my_loss(kind, new, advantages, mask, high, BETA)
    torch.testing.assert_close(mine, expected)
    gradients = (torch.autograd.grad(loss, new)[0] for loss in (mine, expected))
    torch.testing.assert_close(*gradients)
    clipped = losses.policy_loss(new, OLD, advantages.unsqueeze(1) * mask, mask, 0.2, high).clipped / mask.sum()
    assert float(clipped) == pytest.approx(trainer._metrics["train"]["clip_ratio/region_mean"][0]) != 0


def test_gradient_of_the_policy_that_sampled_is_that_of_trls_rloo() -> None:
    """TRL weighs whole responses by one ratio: the same gradient where that is 1, times the longest length."""
    advantages = normal(6)
    new = OLD.clone().requires_grad_()
    trainer = stub(new, epsilon_high=0.2)
    expected = rloo_trainer.RLOOTrainer._compute_loss(trainer, None, inputs_of(advantages, MASK))
    mine = LONGEST * my_loss("dr_grpo", new, advantages, MASK, None, 0.0)
    gradients = (torch.autograd.grad(loss, new)[0] for loss in (mine, expected))
    torch.testing.assert_close(*gradients)
