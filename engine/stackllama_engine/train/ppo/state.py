"""Checkpoint state of PPO, from which a run resumes as if it had never stopped: safetensors and JSON, no pickle.

Sampling noise and prompt order follow from (seed, step), dropout is off: no random state is left to save.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...health.watch import WatchState
from .. import checkpoint, optimizers
from ..reporting import Reporter
from .losses import KLController, Moments
from .rewards import RewardScaling
from .shared_base import CRITIC, SharedBase

POLICY_FILE = "policy.safetensors"
_FILES = {
    "policy": POLICY_FILE,
    "critic": "critic.safetensors",
    "value": "value_head.safetensors",
    "optimizer": "optimizer.safetensors",
}


class Progress(Struct, frozen=True, kw_only=True):
    """``state.json`` of a checkpoint."""

    step: int
    kl_coef: float
    scores: Moments = Moments()
    """Running statistics of the scores, where the recipe normalises them."""
    scheduler: dict[str, Any]
    before: dict[str, Any]
    """The evaluation before training, which only the first attempt can make."""
    best: dict[str, Any] | None = None
    """Summary of the best evaluation so far."""
    optimizer: dict[str, int | float] = {}
    """The optimizer's state besides tensors, ``index.name`` → number."""
    value_loss_apart: bool = False
    """True: the value loss was kept from the policy; up to 0.1.0 only with `value_adapter`."""
    owes_evaluation: bool = False
    """True: the evaluation after this step was cancelled."""
    health: WatchState | None = None
    """What the health rules go by; None: of an older version, which had it in the events alone."""


@dataclass(frozen=True)
class Evaluations:
    """A checkpoint's evaluations; see :class:`Progress`."""

    before: dict[str, Any]
    best: dict[str, Any] | None = None
    owed: bool = False


@dataclass(frozen=True)
class Snapshot:
    """State of :class:`Trainables` at one moment, on the CPU."""

    parameters: list[Tensor]
    optimizer: tuple[dict[str, Tensor], optimizers.Numbers]
    scheduler: dict[str, Any]
    kl_coef: float
    scores: Moments


class Trainables:
    """Everything that changes during training.

    Args:
        base: policy adapter and, where there is a critic, value head and adapter.
        optimizer: over ``base.trainable()``.
        scheduler: stepped once per PPO step.
        controller: of the KL coefficient.
        scaling: of the scores.
    """

    def __init__(
        self,
        base: SharedBase,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        controller: KLController,
        scaling: RewardScaling,
    ) -> None:
        self.base = base
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.controller = controller
        self.scaling = scaling

    def save(
        self,
        reporter: Reporter,
        step: int,
        evaluations: "Evaluations",
        keep: checkpoint.Retention,
        health: WatchState | None = None,
        *,
        by_time: bool = False,
    ) -> None:
        """Seal a checkpoint after ``step`` steps; rank 0 only, every rank holds the same state.

        Raises:
            OSError: disk full or not writable.
        """
        staging = checkpoint.staging_dir(reporter.run.checkpoints, step)
        self.write(staging, step, evaluations, health)
        checkpoint.publish(reporter, staging, step, keep, by_time=by_time)

    def write(self, staging: Path, step: int, evaluations: "Evaluations", health: WatchState | None = None) -> None:
        """Write the files of a checkpoint, not sealed.

        Raises:
            OSError: disk full or not writable.
        """
        save_file(dense(self.base.policy_state()), staging / _FILES["policy"])
        if self.base.has_separate_critic:
            save_file(dense(self.base.policy_state(CRITIC)), staging / _FILES["critic"])
        if self.base.has_critic:
            save_file(dense(self.base.value_head.state_dict()), staging / _FILES["value"])
        moments, counts = optimizers.state_of(self.optimizer)
        save_file(moments, staging / _FILES["optimizer"])
        progress = Progress(
            step=step,
            kl_coef=self.controller.coef,
            scores=self.scaling.moments,
            scheduler=_plain(self.scheduler.state_dict()),
            before=evaluations.before,
            best=evaluations.best,
            optimizer=counts,
            value_loss_apart=True,
            owes_evaluation=evaluations.owed,
            health=health,
        )
        (staging / "state.json").write_bytes(msgspec.json.encode(progress))

    def load(self, path: Path) -> Progress:
        """Restore everything from a sealed checkpoint."""
        device = str(self.base.device)
        self.base.load_policy_state(load_file(path / _FILES["policy"], device=device))
        if self.base.has_separate_critic:
            self.base.load_policy_state(load_file(path / _FILES["critic"], device=device), CRITIC)
        if self.base.has_critic:
            self.base.value_head.load_state_dict(load_file(path / _FILES["value"], device=device))
        progress = msgspec.json.decode((path / "state.json").read_bytes(), type=Progress)
        self._load_optimizer(load_file(path / _FILES["optimizer"], device=device), progress.optimizer)
        self._load_numbers(progress.scheduler, progress.kl_coef, progress.scores)
        return progress

    def snapshot(self) -> "Snapshot":
        """Copy everything as it is now to the CPU; an adapter's worth of memory, three times with AdamW's state."""
        moments, counts = optimizers.state_of(self.optimizer)
        return Snapshot(
            parameters=[parameter.detach().to("cpu", copy=True) for parameter in self.parameters()],
            optimizer=({name: value.to("cpu", copy=True) for name, value in moments.items()}, counts),
            scheduler=dict(self.scheduler.state_dict()),
            kl_coef=self.controller.coef,
            scores=self.scaling.moments,
        )

    @torch.no_grad()
    def restore(self, snapshot: "Snapshot") -> None:
        """Restore everything; gradients are dropped."""
        for parameter, value in zip(self.parameters(), snapshot.parameters, strict=True):
            parameter.copy_(value)
        self.optimizer.zero_grad(set_to_none=True)
        self._load_optimizer(*snapshot.optimizer)
        self._load_numbers(snapshot.scheduler, snapshot.kl_coef, snapshot.scores)

    def _load_numbers(self, scheduler: dict[str, Any], kl_coef: float, scores: Moments) -> None:
        self.scheduler.load_state_dict(_for_groups(scheduler, len(self.optimizer.param_groups)))
        self.controller.coef = kl_coef
        self.scaling.moments = scores
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def parameters(self) -> list[nn.Parameter]:
        """Return the optimizer's parameters, in its order."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _load_optimizer(self, moments: dict[str, Tensor], counts: optimizers.Numbers) -> None:
        self.optimizer.state.clear()
        if moments:
            optimizers.restore(self.optimizer, {name: value.clone() for name, value in moments.items()}, counts)


def dense(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make tensors contiguous, as safetensors needs them."""
    return {name: value.detach().contiguous() for name, value in state.items()}


def _for_groups(state: dict[str, Any], count: int) -> dict[str, Any]:
    """Extend a scheduler's numbers to ``count`` parameter groups: checkpoints up to 0.1.0 had one for everything."""
    lists = {name: value for name, value in state.items() if isinstance(value, list) and len(value) == 1}
    return state | {name: value * count for name, value in lists.items()}


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Return a scheduler's numbers, without its functions."""
    return {name: value for name, value in state.items() if name != "lr_lambdas"} | {
        "lr_lambdas": [None] * len(state.get("lr_lambdas", []))
    }
