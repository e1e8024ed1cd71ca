"""The largest micro-batch that fits, of those that keep the effective batch: size × accumulation stays what it is."""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from ..contract.recipe import TrainedRecipe
from .estimate import Estimate
from .fit import fits

Recipe = TypeVar("Recipe", bound=TrainedRecipe)


def largest_micro_batch(recipe: Recipe, measure: Callable[[Recipe], Estimate], device_bytes: int) -> Recipe | None:
    """Return the recipe with the largest micro-batch that fits; None if the smallest does not, or nothing is known.

    Args:
        recipe: its micro-batch × accumulation is the effective batch.
        measure: estimates a recipe.
        device_bytes: memory of one device.
    """
    total = recipe.micro_batch_size * recipe.gradient_accumulation_steps
    for size in range(total, 0, -1):
        if total % size:
            continue
        changed = msgspec.structs.replace(
            recipe, per_device_train_batch_size=size, gradient_accumulation_steps=total // size
        )
        verdict = fits(measure(changed), device_bytes)
        if verdict == "unknown":
            return None
        if verdict == "yes" or (verdict == "tight" and size == 1):
            return changed
    return None
