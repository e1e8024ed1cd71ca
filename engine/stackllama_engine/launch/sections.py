"""The sections of a pipeline recipe as ordinary stage recipes, and back."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from ..contract.recipe import WIRED, AnyRecipe, PipelineRecipe
from ..contract.recipe_io import build_recipe
from ..contract.stages import Stage

PLACEHOLDER = "wired"


def stage_recipe(recipe: PipelineRecipe, stage: Stage, wired: Mapping[str, str] | None = None) -> AnyRecipe:
    """Return one section as that stage's recipe.

    Args:
        recipe: the pipeline's.
        stage: which section.
        wired: values of the keys that a pipeline fills in; without it a placeholder stands for each.
    """
    filled = dict(wired) if wired is not None else dict.fromkeys(WIRED[stage], PLACEHOLDER)
    return build_recipe(stage, _section(recipe, stage) | filled, where=f"pipeline recipe, section `{stage}`")


def map_sections(
    recipe: PipelineRecipe, change: Callable[[AnyRecipe], AnyRecipe], stages: Iterable[Stage]
) -> PipelineRecipe:
    """Return the pipeline recipe with some sections changed; wired keys stay out of it."""
    changed: dict[str, dict[str, Any]] = {}
    for stage in stages:
        values = msgspec.to_builtins(change(stage_recipe(recipe, stage)))
        changed[stage] = {key: value for key, value in values.items() if key not in WIRED[stage]}
    return msgspec.structs.replace(recipe, **changed)


def _section(recipe: PipelineRecipe, stage: Stage) -> dict[str, Any]:
    return dict(getattr(recipe, stage))
