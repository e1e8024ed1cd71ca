"""Bases of adapters compared with the policy's at launch, by name and by a fingerprint of the weights.

A reward model may have another base than the policy: PPO then holds it as a second model, which reads text by itself.
An adapter that PPO continues may not, and an adapter without its base cannot be loaded.
"""

import functools
from pathlib import Path
from typing import Any

from ..contract.base import CONFIG_FILE, base_identity, find_base, read_identity, same_base
from ..contract.errors import StageError
from ..contract.recipe import PPORecipe, TrainedRecipe
from .lineage import run_behind, training_run


def find_lost_base(recipe: TrainedRecipe) -> str | None:
    """Find an adapter that cannot be loaded: PPO continues it on another base, or its own base is gone."""
    if not isinstance(recipe, PPORecipe):
        return None
    key = "policy_adapter_path"
    try:
        if adapter := _adapter(recipe.policy_adapter_path):
            identity = read_identity(adapter)
            if not same_base(identity, own_base(recipe)):
                return (
                    f"`{key}={adapter}`: it was trained on {identity['name']}, not on {recipe.model_name_or_path}; "
                    "name its base as `model_name_or_path`."
                )
        key = "reward_model_path"
        if (adapter := _adapter(recipe.reward_model_path)) and not same_base(read_identity(adapter), own_base(recipe)):
            find_base(adapter)
    except StageError as error:
        return f"`{key}={getattr(recipe, key)}`: {error}"
    return None


def find_other_base(recipe: TrainedRecipe) -> str | None:
    """Find a reward model that was trained on another base than the policy's."""
    if not isinstance(recipe, PPORecipe) or not recipe.reward_model_path:
        return None
    try:
        identity = _base_of(Path(recipe.reward_model_path))
        if identity is None or same_base(identity, own_base(recipe)):
            return None
    except StageError:  # said by :func:`find_lost_base`
        return None
    return (
        f"`reward_model_path={recipe.reward_model_path}`: it was trained on {identity['name']}, and the policy starts "
        f"from {recipe.model_name_or_path}: it reads responses as text, and both models are held in memory."
    )


def own_base(recipe: TrainedRecipe) -> dict[str, Any]:
    """Return the identity of a recipe's model, computed once: of a ``.gguf`` file every byte is read.

    Raises:
        StageError: its weights cannot be read.
    """
    path = Path(recipe.model_name_or_path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    there = [(file.name, file.stat()) for file in files if file.is_file()]
    version = tuple((name, status.st_size, status.st_mtime_ns) for name, status in there)
    return _identity(recipe.model_name_or_path, recipe.model_revision, version)


@functools.lru_cache(maxsize=8)
def _identity(name: str, revision: str | None, version: object) -> dict[str, Any]:
    return base_identity(name, revision)


def _base_of(reward_model: Path) -> dict[str, Any] | None:
    """Return the base of a reward model: its adapter's, or of a merged one that of the run that trained it."""
    if (reward_model / CONFIG_FILE).is_file():
        return read_identity(reward_model)
    run = run_behind(str(reward_model))
    adapter = training_run(run).adapter if run else None
    return read_identity(adapter) if adapter and (adapter / CONFIG_FILE).is_file() else None


def _adapter(value: str | None) -> Path | None:
    return Path(value) if value and (Path(value) / CONFIG_FILE).is_file() else None
