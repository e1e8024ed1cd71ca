"""What a checkpoint of PPO gives back to a run that begins anew: everything that changed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stackllama_engine.train.ppo.algorithm import Updater
from stackllama_engine.train.ppo.losses import KLController
from stackllama_engine.train.ppo.rewards import RewardScaling
from stackllama_engine.train.ppo.state import Evaluations, Trainables

from .update_kit import Toy, alone, toy


def trainables(one: Toy) -> Trainables:
    optimizer = torch.optim.AdamW(one.base.trainable(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 / (1 + done))
    return Trainables(
        one.base,
        optimizer,
        scheduler,
        KLController(0.2, 6.0, 100),
        RewardScaling(normalise=True, cliprange=None, reduce=alone),
    )


def make_a_step(kept: Trainables, one: Toy) -> torch.Tensor:
    """Of everything that a step changes; returns what the scores became."""
    kept.scaling.update(one.rollout.scores)
    scaled = kept.scaling.scale(one.rollout.scores)
    Updater(one.recipe, one.base, kept.optimizer, alone).update(one.rollout, one.advantages(), torch.Generator())
    kept.controller.update(1.0, 4)
    kept.scheduler.step()
    return scaled


def test_a_run_goes_on_with_all_that_had_changed(base: Path, tmp_path: Path) -> None:
    one, other = toy(base), toy(base)
    straight, resumed = trainables(one), trainables(other)
    make_a_step(straight, one)
    straight.write(tmp_path, 1, Evaluations({}))
    progress = resumed.load(tmp_path)
    assert (progress.step, resumed.controller.coef) == (1, straight.controller.coef)
    assert resumed.controller.coef != 0.2
    assert resumed.scaling.moments == straight.scaling.moments
    assert resumed.scaling.moments.count == 4
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    one.rollout.scores.mul_(2)
    other.rollout.scores.mul_(2)
    assert torch.equal(make_a_step(straight, one), make_a_step(resumed, other))
    for mine, theirs in zip(one.base.trainable(), other.base.trainable(), strict=True):
        assert torch.equal(mine, theirs)


class Copies(TorchDispatchMode):
    """Counts operations that make another copy of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten._to_copy)
        return func(*args, **(kwargs or {}))


def test_a_snapshot_copies_every_tensor_once_and_restores_it(base: Path) -> None:
    """Once: on a GPU a copy beside the optimizer's state would take as much memory again."""
    one = toy(base)
    kept = trainables(one)
    make_a_step(kept, one)
    with Copies() as copies:
        before = kept.snapshot()
    parameters = kept.parameters()
    assert len(parameters) > 2 and copies.count == 4 * len(parameters)  # itself, AdamW's moments, and the step
    make_a_step(kept, one)
    assert not all(map(torch.equal, parameters, before.parameters))
    kept.restore(before)
    again = kept.snapshot()
    assert all(map(torch.equal, again.parameters, before.parameters))
    assert again.optimizer[0].keys() == before.optimizer[0].keys()
    assert all(torch.equal(again.optimizer[0][name], value) for name, value in before.optimizer[0].items())
    assert (again.kl_coef, again.scores) == (before.kl_coef, before.scores)
