"""Changes of the learning rate while its schedule runs."""

import warnings
from typing import Any

import torch

from ..contract.recipe import TrainRecipe


def extra_arguments(recipe: TrainRecipe) -> dict[str, Any]:
    """Return the arguments of the recipe's schedule besides warm-up and length."""
    return {} if recipe.min_lr_rate is None else {"min_lr_rate": recipe.min_lr_rate}


def peak(scheduler: Any) -> float:
    """Return the schedule's peak learning rate."""
    return float(scheduler.base_lrs[0])


def advance(scheduler: Any) -> None:
    """Advance the schedule by one step, also after a skipped one, of which torch would warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)` before", UserWarning)
        scheduler.step()


def set_peak(optimizer: torch.optim.Optimizer, scheduler: Any, rate: float) -> float:
    """Let a ``LambdaLR`` continue from where it is with another peak; both are saved with optimizer and scheduler.

    Parameter groups keep the ratio of their rates: a critic's own rate rises and falls with the policy's.

    Returns:
        the rate of the next step: the peak times the schedule's factor there.
    """
    first = scheduler.base_lrs[0]
    scheduler.base_lrs = [rate * base / first for base in scheduler.base_lrs]
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    scheduler._last_lr = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
    for group, base, now in zip(optimizer.param_groups, scheduler.base_lrs, scheduler._last_lr, strict=True):
        group["initial_lr"], group["lr"] = base, now
    return float(scheduler._last_lr[0])
