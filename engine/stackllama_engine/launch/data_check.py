"""Check of local data at launch: files are opened and their first rows are read as the stage will.

A hub data set is not read here. The stage reads it, and reports the same errors.
"""

import importlib.util
from itertools import islice
from pathlib import Path

from ..contract.atomic_files import existing_files
from ..contract.errors import DataError
from ..contract.recipe import (
    AnyRecipe,
    MergeRecipe,
    PipelineRecipe,
    PPORecipe,
    PreferenceRecipe,
    RewardRecipe,
    SFTRecipe,
    TrainedRecipe,
)
from ..contract.stages import PIPELINE_STAGES
from ..data.columns import ALL_SCALARS, LOOK_AT, NEEDS, Columns, extra_columns, look_at, notices
from ..data.kinds import DEMO, has_known_columns, kind_of, needs_pyarrow
from ..data.local import ALL, local_rows
from .sections import stage_recipe


def check_data(recipe: TrainedRecipe) -> Columns | None:
    """Read the columns of local data off its first rows; None for a hub set, or where Parquet cannot be read.

    Raises:
        DataError: unreadable, without rows, without a column the stage needs, or with something other than text in it.
    """
    path = None if recipe.dataset_name == DEMO else existing_files(recipe.dataset_name)
    if path is None:
        return None
    prepared = kind_of(str(path)) == "prepared"
    if not prepared and needs_pyarrow(str(path)) and importlib.util.find_spec("pyarrow") is None:
        return None  # where the run will be, it may be installed
    # which split a file's row belongs to is known by reading it, and the first one may be far down
    split = recipe.dataset_train_split if prepared else ALL
    label = f"`dataset_name={recipe.dataset_name}`"
    names = recipe.dataset_columns
    columns = look_at(local_rows(str(path), split, names), NEEDS[recipe.stage], label, names)
    if columns is None:
        raise DataError(f"{label}: there is no row in split {split}.")
    return columns


def function_arguments(recipe: PPORecipe, columns: Columns | None) -> set[str] | None:
    """Return what reward functions get by name besides prompts and responses; None where the columns are not known.

    Args:
        recipe: with its inputs resolved.
        columns: of its data set, by :func:`check_data`.

    Raises:
        DataError: one of ``reward_columns`` is missing.
    """
    wanted = ALL_SCALARS if recipe.reward_columns is None else recipe.reward_columns
    if columns is None:
        return None if wanted == ALL_SCALARS else {*wanted, *recipe.reward_kwargs}
    name = recipe.dataset_name
    split = recipe.dataset_train_split if kind_of(name) == "prepared" else ALL
    rows = islice(local_rows(name, split, recipe.dataset_columns), LOOK_AT)
    label = f"`dataset_name={name}`"
    return {*extra_columns((row for _, row in rows), columns, wanted, label), *recipe.reward_kwargs}


def data_notices(recipe: AnyRecipe) -> list[str]:
    """Return notices on how a launch's stages will read their local data.

    Raises:
        DataError: as :func:`check_data`.
    """
    match recipe:
        case MergeRecipe():
            return []
        case PipelineRecipe():
            of_stages = [data_notices(stage_recipe(recipe, stage)) for stage in PIPELINE_STAGES]
            return list(dict.fromkeys(notice for found in of_stages for notice in found))
        case SFTRecipe() | RewardRecipe() | PreferenceRecipe() | PPORecipe():
            columns = check_data(recipe)
            if columns is None or has_known_columns(recipe.dataset_name):
                return []
            return notices(Path(recipe.dataset_name).name, columns)
