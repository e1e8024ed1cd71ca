"""The reward model that scores a chat's answers: the one that the run was, or would be, trained against. No torch."""

from pathlib import Path

from msgspec import Struct

from .children import child_id, known_parents
from .recipe import MergeRecipe, PPORecipe
from .recipe_io import load_recipe
from .run_dir import RunDir
from .stages import Stage


class RewardModel(Struct, frozen=True, kw_only=True):
    """A reward model by name."""

    path: str
    """An adapter's or a model's directory, or a hub id."""
    label: int | None = None
    """Which of its scores is the reward, if it has several."""


def has_reward_functions(run: RunDir) -> bool:
    """Return whether reward functions score the responses of a PPO run, of a merge those of the merged run.

    Raises:
        UsageError: a recipe or state cannot be read.
    """
    recipe = load_recipe(run.read_state().stage, run.recipe_file)
    if isinstance(recipe, MergeRecipe):
        source = _merged_run(run, recipe)
        return source is not None and has_reward_functions(source)
    return isinstance(recipe, PPORecipe) and bool(recipe.reward_funcs)


def find_reward_model(run: RunDir) -> RewardModel | None:
    """Return the reward model of a PPO run's recipe, of a merge the merged run's, or else of the same pipeline.

    None: none is known, as where reward functions score.

    Raises:
        UsageError: a recipe or state cannot be read.
    """
    recipe = load_recipe(run.read_state().stage, run.recipe_file)
    if isinstance(recipe, PPORecipe):
        name = recipe.reward_model_path
        return RewardModel(path=name, label=recipe.reward_model_label) if name else None
    if isinstance(recipe, MergeRecipe):
        source = _merged_run(run, recipe)
        return find_reward_model(source) if source is not None else None
    pipeline = run.id.removesuffix(f"-{Stage.SFT}")
    reward = RunDir(run.path.parent / child_id(pipeline, Stage.REWARD))
    if recipe.stage is not Stage.SFT or pipeline not in known_parents(reward):
        return None
    return next((RewardModel(path=str(path)) for path in (reward.adapter, reward.merged) if path.is_dir()), None)


def _merged_run(run: RunDir, recipe: MergeRecipe) -> RunDir | None:
    """Return the run whose adapter was merged, if it is one beside this run."""
    source = RunDir(Path(recipe.adapter_path).absolute().parent)
    beside = source.path.parent == run.path.parent and source.id != run.id
    return source if beside and (source.path / "state.json").is_file() else None
