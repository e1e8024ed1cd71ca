"""A recipe that was changed between two attempts is not resumed with until somebody says so.

Every attempt keeps a copy of the recipe it began with (``attempts/NNN/recipe.yaml``), and ``launch.json`` its SHA-256,
so that an edit and a flipped bit are both seen, and named key by key. Runs of before have no copy: of them the newest
checkpoint's recipe is compared. What becomes of a key that changed: :mod:`..contract.resuming`.
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
    """A recipe is not the one that the run began with, and nobody has confirmed that yet.

    Args:
        changes: what changed, a sentence for every run that it concerns.
    """

    def __init__(self, changes: list[str]) -> None:
        way_out = f"Add {FLAG} to resume with it as it is now."
        super().__init__("recipe_changed", FLAG, changes, "Resume with the recipe as it is now?", way_out)


def keep_recipe(run: RunDir, attempt: int) -> str:
    """Put a copy of the recipe into an attempt's folder; its SHA-256.

    Raises:
        OSError: it cannot be read or written.
    """
    data = read_file(run.recipe_file, _MOST_RECIPE)
    write_whole(run.attempt_dir(attempt) / RECIPE_FILE, data)
    return hashlib.sha256(data).hexdigest()


def recipe_hash(run: RunDir) -> str:
    """SHA-256 of a run's recipe as it is now.

    Raises:
        OSError: it cannot be read.
    """
    return hashlib.sha256(read_file(run.recipe_file, _MOST_RECIPE)).hexdigest()


def load_own_recipe(run: RunDir, stage: Stage) -> AnyRecipe:
    """The recipe of a run that exists.

    Raises:
        RecipeError: it cannot be read; says where a copy is.
    """
    try:
        return load_recipe(stage, run.recipe_file)
    except RecipeError as error:
        copies = [path for path in _copies(run) if _is_recipe(stage, path)]
        if not copies:
            raise
        restore = shlex.join(["cp", str(copies[0]), str(run.recipe_file)])
        raise RecipeError(f"{error}\nThe recipe that it ran with is kept; this restores it: {restore}") from None


def refuse_changed(run: RunDir, stage: Stage) -> None:
    """Compare a run's recipe with that of its last attempt; of a pipeline also those of the stages to be resumed.

    Raises:
        RecipeChangedError: one of them has changed in what it says.
        RecipeError: one of them cannot be read.
    """
    told = [_told(each, its_stage) for each, its_stage in [(run, stage), *_children(run, stage)]]
    if changes := [text for text in told if text]:
        raise RecipeChangedError(changes)


def _children(run: RunDir, stage: Stage) -> list[tuple[RunDir, Stage]]:
    """The stages that a pipeline has begun and not finished."""
    if stage is not Stage.PIPELINE:
        return []
    found: list[tuple[RunDir, Stage]] = []
    for other in children_of(run):
        try:
            state = other.read_state()
        except DamagedError:  # the pipeline says so when it comes to it
            continue
        if state.phase != "finished":
            found.append((other, state.stage))
    return found


def _told(run: RunDir, stage: Stage) -> str:
    """What changed, in a sentence; empty where nothing did, or nothing is left to compare with."""
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
            found = changes_of(run, recipe) if isinstance(recipe, TrainRecipe) else None
            changes = found.all if found else []
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
            f"To undo that: {restore}."
        )
    if launched is not None:  # of a job that has not begun yet there is no copy
        return f"Run `{run.id}`: its recipe has changed since it was submitted."
    return ""


def _launched(run: RunDir) -> str | None:
    try:
        return run.read_launch().recipe_sha256
    except DamagedError:
        return None


def _copies(run: RunDir) -> list[Path]:
    """Recipes that the run was under, the newest attempt's first, then that of the newest checkpoint."""
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
    """A pipeline's sections as ``section.key``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = cast("dict[str, Any]", value) if isinstance(value, dict) else None
        flat |= {key: value} if inner is None else {f"{key}.{name}": one for name, one in inner.items()}
    return flat
