"""`base_precision: auto` and `gradient_checkpointing: auto`, decided at launch from the card and the model's files.

What was decided stands in the run's recipe.yaml, so that no later attempt decides again. See :mod:`..budget.auto`.
"""

from pathlib import Path
from typing import Any

import msgspec

from ..budget.architecture import Architecture
from ..budget.auto import Case, has_auto, resolve
from ..budget.model_files import read_architecture
from ..contract.errors import RecipeError, UsageError
from ..contract.recipe import WIRED, AnyRecipe, PipelineRecipe, PPORecipe, TrainedRecipe
from .expected import model_files, own_reward
from .gpus import smallest_card
from .main_memory import main_memory
from .preflight import training_stages


def resolve_auto(recipe: AnyRecipe, gpus: list[str]) -> AnyRecipe:
    """Return a recipe with every `auto` of these keys decided; of a pipeline for all stages at once.

    Args:
        recipe: with its inputs resolved.
        gpus: the visible GPUs.

    Raises:
        RefusedError: no precision fits, or the memory needed is not known.
    """
    stages = training_stages(recipe)
    if not any(has_auto(stage) for stage in stages):
        return recipe
    resolved = resolve([_case(stage, gpus) for stage in stages])
    if not isinstance(recipe, PipelineRecipe):
        return resolved[0]
    sections: dict[str, dict[str, Any]] = {}
    for stage in resolved:
        values = msgspec.to_builtins(stage)
        sections[stage.stage] = {key: value for key, value in values.items() if key not in WIRED[stage.stage]}
    return msgspec.structs.replace(recipe, **sections)


def refuse_auto(recipe: AnyRecipe) -> None:
    """Refuse to decide for a run that has begun: somebody wrote `auto` over what was decided at its launch.

    Raises:
        RecipeError: as said.
    """
    for stage in training_stages(recipe):
        if keys := has_auto(stage):
            where = f"{stage.stage}." if isinstance(recipe, PipelineRecipe) else ""
            raise RecipeError(
                f"recipe: `{where}{keys[0]}: auto` is decided at launch, and this run has begun; write the value that "
                "it began with, which its attempts/001/recipe.yaml has."
            )


def _case(recipe: TrainedRecipe, gpus: list[str]) -> Case:
    if recipe.use_cpu or not gpus:
        memory, processes = main_memory().total, recipe.num_processes or 1
        arch, reward = _architectures(recipe)
        return Case(recipe=recipe, arch=arch, reward=reward, gpus=processes, on_gpu=False, bytes=memory // processes)
    chosen = gpus[: recipe.num_processes]
    card = smallest_card(chosen)
    arch, reward = _architectures(recipe)
    return Case(
        recipe=recipe,
        arch=arch,
        reward=reward,
        gpus=len(chosen),
        bytes=card.memory if card else None,
        place=card.name if card else f"GPU {chosen[0]}",
    )


def _architectures(recipe: TrainedRecipe) -> tuple[Architecture | None, Architecture | None]:
    """Return the sizes of the model and of a separate reward model; None where their files do not say them."""
    files = model_files(recipe.model_name_or_path, recipe.model_revision)
    if files is None:
        return None, None
    return _read(files), _reward(recipe, files) if isinstance(recipe, PPORecipe) else None


def _read(files: Path) -> Architecture | None:
    try:
        return read_architecture(files)
    except (UsageError, OSError):  # of a kind without the sizes that an estimate needs, or truncated
        return None


def _reward(recipe: PPORecipe, files: Path) -> Architecture | None:
    try:
        return own_reward(recipe, files)
    except (UsageError, OSError):  # the stage says what is wrong with it
        return None
