"""Runs that trained what a stage builds on: found from the paths of its inputs, then from parent to parent."""

from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from ..contract.children import known_parents
from ..contract.errors import StackllamaError
from ..contract.recipe import TrainedRecipe
from ..contract.recipe_io import load_recipe
from ..contract.run_dir import RunDir
from ..contract.stages import TRAINING_STAGES, Stage

INPUT_KEYS = ("model_name_or_path", "reward_model_path", "policy_adapter_path")
_OUTPUTS = ("adapter", "merged")


class Trained(Struct, frozen=True):
    """One training that a stage builds on."""

    name: str
    """The run's id, or ``the pipeline's sft stage``."""
    recipe: TrainedRecipe


def trained_before(recipe: TrainedRecipe) -> list[Trained]:
    """Return the runs that trained a stage's inputs and what these were made from; none of what is no run's output.

    Args:
        recipe: with its inputs resolved.
    """
    found: dict[Path, Trained] = {}
    waiting = [run for key in INPUT_KEYS if (run := run_behind(getattr(recipe, key, None)))]
    seen: set[Path] = set()
    while waiting:
        run = waiting.pop()
        if run.path in seen:
            continue
        seen.add(run.path)
        if trained := _trained(run):
            found[run.path] = trained
        waiting += _parents(run)
    return list(found.values())


def run_behind(value: str | None) -> RunDir | None:
    """Return the run whose adapter or merged model a path is; None where it is something else."""
    path = Path(value or "")
    return RunDir(path.parent) if path.name in _OUTPUTS and RunDir(path.parent).recipe_file.is_file() else None


def training_run(run: RunDir) -> RunDir:
    """Return the run that trained what a run left: of a merge the one that trained its adapter."""
    if _stage(run) is not Stage.MERGE:
        return run
    return next((parent for parent in _parents(run) if _stage(parent) in TRAINING_STAGES), run)


def _parents(run: RunDir) -> Iterator[RunDir]:
    """Yield what a run was made from; its pipeline's parents are those of other stages as well, and are left out."""
    for parent in known_parents(run):
        made_from = RunDir(run.path.parent / parent)
        if _stage(made_from) not in (None, Stage.PIPELINE):
            yield made_from


def _stage(run: RunDir) -> Stage | None:
    try:
        return run.read_state().stage
    except (StackllamaError, OSError):  # removed since, or damaged
        return None


def _trained(run: RunDir) -> Trained | None:
    stage = _stage(run)
    if stage is None or stage not in TRAINING_STAGES:
        return None
    try:
        recipe = load_recipe(stage, run.recipe_file)
    except (StackllamaError, OSError):  # of a run whose recipe cannot be read nothing is known
        return None
    assert isinstance(recipe, TrainedRecipe)
    return Trained(run.id, recipe)
