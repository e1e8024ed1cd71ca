"""Changes of a recipe since the checkpoint that a run resumes from: applied, kept from the checkpoint, or refused.

A checkpoint holds the recipe it was saved under (``recipe.yaml``) and its base's identity (``base.json``). Those from
before 0.2 hold neither; for them only what the adapter itself records is compared. `docs/reliability.md` has the table.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import Struct

from .atomic_files import write_whole
from .base import BASE_FILE, BASE_KEY, CONFIG_FILE, base_identity, same_base
from .checkpoints import sealed, step_of
from .errors import RecipeError, RefusedError
from .recipe import AnyRecipe, TrainRecipe
from .recipe_io import dump_recipe, load_recipe
from .run_dir import RunDir
from .run_files import UNDECODABLE, decode_file, open_file
from .stages import Stage

RECIPE_FILE = "recipe.yaml"
MODEL = "model_name_or_path"

REFUSED = frozenset(
    {
        "model_revision",
        "use_peft",
        "lora_r",
        "lora_alpha",
        "lora_target_modules",
        "optim",
        "policy_adapter_path",
        "advantage",
        "value_adapter",
        "value_adapter_layers",
    }
)
"""Keys that weights or optimizer state depend on (the base itself is compared by its fingerprint)."""
_OPTIMIZER = frozenset({"learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"})
KEPT: dict[Stage, frozenset[str]] = {
    Stage.SFT: _OPTIMIZER,
    Stage.REWARD: _OPTIMIZER,
    Stage.PREFERENCE: _OPTIMIZER,
    Stage.PPO: frozenset({"learning_rate", "value_learning_rate", "kl_coef", "value_head_init"}),
}
"""Keys whose value is restored from the checkpoint; every other key is applied from the next step on."""
_SIZES = frozenset(
    {
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "per_device_eval_batch_size",
        "local_rollout_forward_batch_size",
        "max_tokens_per_micro_batch",
    }
)
_RESTART = "restart.json"
_POLICY = "policy.safetensors"
_MOST_HEADER = 64 << 20


class Change(Struct, frozen=True):
    """A changed key: its value in the checkpoint's recipe, and in the run's recipe now."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"`{self.key}` {_shown(self.before)} → {_shown(self.now)}"


class Changes(Struct, frozen=True, kw_only=True):
    """Differences from the checkpoint's recipe, by how they are treated."""

    checkpoint: str
    applied: list[Change] = []
    kept: list[Change] = []
    refused: list[Change] = []
    beyond: int | None = None
    """``max_steps`` if the checkpoint is past it."""

    @property
    def all(self) -> list[Change]:
        """All changed keys."""
        return [*self.applied, *self.kept, *self.refused]

    def refusal(self) -> str | None:
        """Return why the run cannot be resumed with this recipe, and the fix; None if it can."""
        if self.beyond is not None:
            return (
                f"`max_steps: {self.beyond}`: {self.checkpoint} is past that step; raise it, or remove the checkpoints "
                "after that step."
            )
        if not self.refused:
            return None
        them = "them" if len(self.refused) > 1 else "it"
        return (
            f"The recipe has changed since {self.checkpoint} was saved, in keys that its weights depend on: "
            f"{', '.join(map(str, self.refused))}. Set {them} back in recipe.yaml, or start a new run."
        )

    def notice(self) -> str | None:
        """Return in one line what is applied and what is kept; None if nothing changed."""
        parts: list[str] = []
        if self.applied:
            parts.append(f"applied from now on: {', '.join(map(str, self.applied))}")
        if self.kept:
            kept = ", ".join(f"`{each.key}` stays {_shown(each.before)}, not {_shown(each.now)}" for each in self.kept)
            parts.append(f"kept from the checkpoint: {kept}")
        return f"the recipe has changed since {self.checkpoint}: {'; '.join(parts)}" if parts else None


def remember(folder: Path, recipe: TrainRecipe) -> None:
    """Write the recipe and the base's identity into a checkpoint.

    Raises:
        OSError: disk full or not writable.
    """
    write_whole(folder / RECIPE_FILE, dump_recipe(cast("AnyRecipe", recipe)).encode())
    identity = _identity(recipe.model_name_or_path, recipe.model_revision)
    write_whole(folder / BASE_FILE, json.dumps(identity, indent=2).encode() + b"\n")


def changes(checkpoint: Path, recipe: TrainRecipe, *, check_base: bool = True) -> Changes:
    """Compare a recipe with the one that a checkpoint was saved under.

    Args:
        checkpoint: a sealed one.
        recipe: the run's recipe now.
        check_base: compare the base's weights even if its name is the same.
    """
    before = _recorded(checkpoint, recipe.stage)
    now: dict[str, Any] = msgspec.to_builtins(recipe)
    different = [Change(key, before[key], now.get(key)) for key in before if not _equal(key, before[key], now.get(key))]
    refused = [change for change in different if change.key in REFUSED]
    base = next((change for change in different if change.key == MODEL), None)
    if (base or check_base) and not _same_weights(checkpoint, recipe, before.get(MODEL)):
        name = recipe.model_name_or_path
        refused.append(base or Change(MODEL, f"{name} as it was", f"{name} with other weights"))
    kept = [change for change in different if change.key in KEPT[recipe.stage]]
    step, most = step_of(checkpoint), int(now["max_steps"])
    return Changes(
        checkpoint=checkpoint.name,
        applied=[change for change in different if change not in refused and change not in kept],
        kept=kept,
        refused=refused,
        beyond=most if 0 < most < step else None,
    )


def check_resume(run: RunDir, recipe: AnyRecipe) -> str | None:
    """Return a resume's notice about a changed recipe before anything is started; verifies no checkpoint.

    Raises:
        RefusedError: the recipe changed in keys that cannot change within a run.
    """
    differences = changes_of(run, recipe) if isinstance(recipe, TrainRecipe) else None
    if differences is None:
        return None
    if refusal := differences.refusal():
        raise RefusedError(f"Run `{run.id}`: {refusal}")
    return differences.notice()


def changes_of(run: RunDir, recipe: TrainRecipe) -> Changes | None:
    """Compare a run's recipe with its newest checkpoint's; None while there is no checkpoint."""
    newest = next(reversed(sealed(run.checkpoints)), None)
    if newest is None:
        return None
    differences = changes(newest, recipe, check_base=False)
    if any((folder / _RESTART).is_file() for folder in run.attempt_dirs()):  # its batch sizes are used, and reported
        applied = [change for change in differences.applied if change.key not in _SIZES]
        return msgspec.structs.replace(differences, applied=applied)
    return differences


def _recorded(checkpoint: Path, stage: Stage) -> dict[str, Any]:
    """Return what is known of the recipe that a checkpoint was saved under."""
    file = checkpoint / RECIPE_FILE
    if file.is_file():
        try:
            values: dict[str, Any] = msgspec.to_builtins(load_recipe(stage, file))
        except RecipeError:  # from another version: fall back to what the adapter records
            pass
        else:
            return values
    return _of_adapter(checkpoint) or _of_policy(checkpoint)


def _of_adapter(checkpoint: Path) -> dict[str, Any]:
    """Read keys from PEFT's own file, in checkpoints of sft and reward."""
    try:
        config: dict[str, Any] = decode_file(checkpoint / CONFIG_FILE, dict[str, Any])
    except (OSError, *UNDECODABLE):
        return {}
    names = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_target_modules": "target_modules", MODEL: BASE_KEY}
    return {key: config[name] for key, name in names.items() if config.get(name) is not None}


def _of_policy(checkpoint: Path) -> dict[str, Any]:
    """Read the rank from the tensor shapes of PPO's policy."""
    try:
        with os.fdopen(open_file(checkpoint / _POLICY), "rb") as file:
            header = file.read(min(int.from_bytes(file.read(8), "little"), _MOST_HEADER))
        tensors: dict[str, Any] = msgspec.json.decode(header)
        return {"lora_r": next(each["shape"][0] for name, each in tensors.items() if "lora_A" in name)}
    except (OSError, *UNDECODABLE, StopIteration, LookupError, TypeError, AttributeError):
        return {}


def _equal(key: str, before: Any, now: Any) -> bool:
    if key != "lora_target_modules":
        return before == now
    if isinstance(before, list) and not isinstance(now, list):  # PEFT wrote out what `all-linear` or its default meant
        return True
    if isinstance(before, list) and isinstance(now, list):
        return sorted(map(str, cast("list[Any]", before))) == sorted(map(str, cast("list[Any]", now)))
    return before == now


def _same_weights(checkpoint: Path, recipe: TrainRecipe, before: Any) -> bool:
    """Return whether the base is the one that the checkpoint was trained on; true where that cannot be known."""
    now = base_identity(recipe.model_name_or_path, recipe.model_revision)
    try:
        recorded = decode_file(checkpoint / BASE_FILE, dict[str, Any])
    except (OSError, *UNDECODABLE):
        if not isinstance(before, str) or not Path(before).is_absolute() or not Path(before).exists():
            return True
        recorded = base_identity(before, None)
    return same_base(recorded, now)


@functools.lru_cache(maxsize=4)
def _identity(name: str, revision: str | None) -> dict[str, str | None]:
    """Return the base's identity, computed once per process: of a .gguf file every byte is read."""
    return base_identity(name, revision)


def _shown(value: Any) -> str:
    return (
        "empty" if value is None else json.dumps(value, ensure_ascii=False) if isinstance(value, list) else f"{value}"
    )
