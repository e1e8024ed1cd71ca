"""Detection of recipe changes between two attempts, which a resume must confirm.

Every attempt keeps a copy of the recipe it began with (``attempts/NNN/recipe.yaml``), and ``launch.json`` its SHA-256,
so that an edit and a flipped bit are both detected, and named key by key. Runs of older versions have no copy: the
newest checkpoint's recipe is compared instead. Effect of a changed key: :mod:`..contract.resuming`.
"""

import hashlib
import shlex
from pathlib import Path
from typing import Any, cast

import msgspec

from ..contract.atomic_files import write_whole
from ..contract.checkpoints import sealed
from ..contract.children import children_of
from ..contract.errors import DamagedError, RecipeError, UnconfirmedError
from ..contract.recipe import AnyRecipe, TrainRecipe
from ..contract.recipe_io import load_recipe
from ..contract.resuming import RECIPE_FILE, Change, changes_of
from ..contract.run_dir import RunDir
from ..contract.run_files import read_file, why_unreadable
from ..contract.stages import Stage

FLAG = "--recipe-changed"
_MOST_RECIPE = 1 << 20  # bytes


class RecipeChangedError(UnconfirmedError):
    """A recipe is not the one that the run began with, and that is not confirmed yet.

    Args:
        changes: what changed, one sentence per run.
    """

    def __init__(self, changes: list[str]) -> None:
        way_out = f"Add {FLAG} to resume with the current recipe."
        super().__init__("recipe_changed", FLAG, changes, "Resume with the current recipe?", way_out)


def keep_recipe(run: RunDir, attempt: int) -> str:
    """Copy the recipe into an attempt's folder and return its SHA-256.

    Raises:
        OSError: it cannot be read or written.
    """
    data = read_file(run.recipe_file, _MOST_RECIPE)
    write_whole(run.attempt_dir(attempt) / RECIPE_FILE, data)
    return hashlib.sha256(data).hexdigest()


def recipe_hash(run: RunDir) -> str:
    """Return the SHA-256 of a run's current recipe.

    Raises:
        OSError: it cannot be read.
    """
    return hashlib.sha256(read_file(run.recipe_file, _MOST_RECIPE)).hexdigest()


def load_own_recipe(run: RunDir, stage: Stage) -> AnyRecipe:
    """Load the recipe of an existing run.

    Raises:
        RecipeError: it cannot be read; the message names a copy, if there is one.
    """
    try:
        return load_recipe(stage, run.recipe_file)
    except RecipeError as error:
        copies = [path for path in _copies(run) if _is_recipe(stage, path)]
        if not copies:
            raise
        restore = shlex.join(["cp", str(copies[0]), str(run.recipe_file)])
        raise RecipeError(f"{error}\nRestore the copy that the run kept: {restore}") from None


def refuse_changed(run: RunDir, stage: Stage) -> None:
    """Compare a run's recipe with that of its last attempt; for a pipeline also those of the stages to be resumed.

    Raises:
        RecipeChangedError: a value in one of them has changed.
        RecipeError: one of them cannot be read.
    """
    descriptions = [_change(each, its_stage) for each, its_stage in [(run, stage), *_children(run, stage)]]
    if changes := [text for text in descriptions if text]:
        raise RecipeChangedError(changes)


def _children(run: RunDir, stage: Stage) -> list[tuple[RunDir, Stage]]:
    """Return the stages that a pipeline has begun and not finished."""
    if stage is not Stage.PIPELINE:
        return []
    unfinished: list[tuple[RunDir, Stage]] = []
    for other in children_of(run):
        try:
            state = other.read_state()
        except DamagedError:  # the pipeline reports it when it gets there
            continue
        if state.phase != "finished":
            unfinished.append((other, state.stage))
    return unfinished


def _change(run: RunDir, stage: Stage) -> str:
    """Describe what changed in a sentence; empty where nothing did, or there is nothing to compare with."""
    try:
        data = read_file(run.recipe_file, _MOST_RECIPE)
    except OSError as error:
        raise RecipeError(f"{run.recipe_file}: cannot be read: {why_unreadable(error)}.") from None
    launched = _launched(run)
    if launched == hashlib.sha256(data).hexdigest():
        return ""
    recipe = load_own_recipe(run, stage)
    for copy in _copies(run):
        if copy.parent.parent == run.checkpoints:
            by_effect = changes_of(run, recipe) if isinstance(recipe, TrainRecipe) else None
            changes = by_effect.all if by_effect else []
        elif (before := _read(stage, copy)) is None:
            continue
        else:
            changes = _differences(before, recipe)
        if not changes:
            return ""
        since = copy.parent.name if copy.parent.parent == run.checkpoints else f"attempt {int(copy.parent.name)}"
        restore = shlex.join(["cp", str(copy), str(run.recipe_file)])
        return (
            f"Run `{run.id}`: its recipe has changed since {since}: {', '.join(map(str, changes))}. "
            f"To undo this: {restore}."
        )
    if launched is not None:  # a job that has not begun yet has no copy
        return f"Run `{run.id}`: its recipe has changed since it was submitted."
    return ""


def _launched(run: RunDir) -> str | None:
    try:
        return run.read_launch().recipe_sha256
    except DamagedError:
        return None


def _copies(run: RunDir) -> list[Path]:
    """List the copies of the run's recipe, the newest attempt's first, then that of the newest checkpoint."""
    folders = [*reversed(run.attempt_dirs()), *list(reversed(sealed(run.checkpoints)))[:1]]
    return [path for folder in folders if (path := folder / RECIPE_FILE).is_file()]


def _is_recipe(stage: Stage, path: Path) -> bool:
    return _read(stage, path) is not None


def _read(stage: Stage, path: Path) -> AnyRecipe | None:
    try:
        return load_recipe(stage, path)
    except RecipeError:  # damaged as well, or of another version
        return None


def _differences(before: AnyRecipe, now: AnyRecipe) -> list[Change]:
    old, new = _flat(msgspec.to_builtins(before)), _flat(msgspec.to_builtins(now))
    return [Change(key, old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)]


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Flatten a pipeline's sections to ``section.key``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = cast("dict[str, Any]", value) if isinstance(value, dict) else None
        flat |= {key: value} if inner is None else {f"{key}.{name}": one for name, one in inner.items()}
    return flat
