"""A learning rate that changes while its schedule runs."""

import warnings
from typing import Any

import torch


def peak(scheduler: Any) -> float:
    """The learning rate at the schedule's top."""
    return float(scheduler.base_lrs[0])


def advance(scheduler: Any) -> None:
    """One step of the schedule; one that was skipped counts as well, of which torch would warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)` before", UserWarning)
        scheduler.step()


def set_peak(optimizer: torch.optim.Optimizer, scheduler: Any, rate: float) -> float:
    """Let a ``LambdaLR`` go on from where it is with another peak; both are saved with optimizer and scheduler.

    Returns:
        the rate of the next step: the peak times the schedule's factor there.
    """
    scheduler.base_lrs = [rate for _ in scheduler.base_lrs]
    scheduler._last_lr = [rate * factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    for group, now in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
        group["initial_lr"], group["lr"] = rate, now
    return float(scheduler._last_lr[0])
