"""A recipe's memory on a device: find the model, estimate, compare, propose changes.

Loads nothing and uses no network; a plan takes milliseconds.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from stackllama_engine.budget.architecture import Architecture
from stackllama_engine.budget.auto import Case, Price, prices, resolve_or_nearest
from stackllama_engine.budget.auto_batch import largest_micro_batch
from stackllama_engine.budget.estimate import Estimate, EstimatedRecipe, estimate, estimate_sharded
from stackllama_engine.budget.fit import Fits, Suggestion, fits, suggestions
from stackllama_engine.budget.model_files import read_architecture
from stackllama_engine.budget.sharding import Sharding
from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.recipe import MergeRecipe, PPORecipe, RewardRecipe, SFTRecipe
from stackllama_engine.contract.run_dir import RUN_ID, Home
from stackllama_engine.contract.user_files import any_object
from stackllama_engine.launch.sections import PLACEHOLDER

from ..sanitise import one_line
from .model_catalog import locate

if TYPE_CHECKING:
    from stackllama_engine.budget.calibration import Calibration

_BASE = "base.json"
_ADAPTER = "adapter_config.json"


class Place(Struct, frozen=True, kw_only=True):
    """The device that a run would use."""

    bytes: int
    """Memory of one device."""
    name: str
    on_gpu: bool
    gpus: int = 1


class MemoryPlan(Struct, frozen=True, kw_only=True):
    """The memory that a recipe needs there."""

    architecture: Architecture
    estimate: Estimate
    calibrated: str | None = None
    """A note that earlier runs gave the intervals; None: they are the formula's own."""
    fits: Fits
    suggestions: list[Suggestion]
    batch: tuple[int, int] | None = None
    """The largest micro-batch that fits, and the accumulation that keeps the effective batch; None: none fits, or
    micro-batches are cut by tokens."""
    shard: Sharding | None = None
    """The estimate is of one GPU among several that each hold a share, which the engine does not launch."""


def make_plan(
    home: Home,
    recipe: EstimatedRecipe,
    place: Place,
    calibration: "Calibration | None" = None,
    shard: Sharding | None = None,
) -> MemoryPlan:
    """Estimate a recipe.

    Args:
        home: whose runs it may name.
        recipe: any stage's but a pipeline's.
        place: the device.
        calibration: what earlier runs measured on that device; None: nothing.
        shard: what would be, were the run divided among GPUs; None: what is launched.

    Raises:
        UsageError: the model's files are not on this machine, or not readable; or this recipe cannot be sharded.
    """
    architecture = read_architecture(model_files(home, recipe))
    if shard:
        return _sharded(recipe, architecture, place, shard)
    reward, note = reward_architecture(home, recipe) if isinstance(recipe, PPORecipe) else (None, None)

    def measure(one: EstimatedRecipe) -> Estimate:
        return estimate(
            one, architecture, gpus=place.gpus, on_gpu=place.on_gpu, reward=reward, device_bytes=place.bytes
        )

    recipe, batch = _largest_batch(recipe, measure, place)
    estimated = measure(recipe)
    if note:
        estimated = msgspec.structs.replace(
            estimated, rough="; ".join(part for part in (estimated.rough, note) if part)
        )

    def adjusted(changed: EstimatedRecipe, one: Estimate) -> tuple[Estimate, str | None]:
        return calibration.narrow(one, changed, gpus=place.gpus, on_gpu=place.on_gpu) if calibration else (one, None)

    estimated, calibrated = adjusted(recipe, estimated)
    return MemoryPlan(
        architecture=architecture,
        estimate=estimated,
        calibrated=calibrated,
        fits=fits(estimated, place.bytes),
        suggestions=suggestions(
            recipe,
            architecture,
            place.bytes,
            gpus=place.gpus,
            on_gpu=place.on_gpu,
            reward=reward,
            adjust=lambda changed, one: adjusted(changed, one)[0],
        ),
        batch=batch,
    )


class Decided(Struct, frozen=True, kw_only=True):
    """Recipes with every `auto` decided as a launch there would decide it."""

    recipes: list[EstimatedRecipe]
    prices: list[Price]
    """Memory of the run in each precision; empty where there is no choice."""
    refused: str
    """Why a launch would refuse to decide; empty where it would not."""


def decide(home: Home, stages: list[tuple[EstimatedRecipe, Place]]) -> Decided:
    """Decide `base_precision: auto` and `gradient_checkpointing: auto` for the stages of one run.

    Raises:
        UsageError: the model's files are not on this machine, or not readable.
    """
    cases = {number: _case(home, *one) for number, one in enumerate(stages) if not isinstance(one[0], MergeRecipe)}
    resolved, refused = resolve_or_nearest(list(cases.values()))
    recipes = [recipe for recipe, _ in stages]
    for number, recipe in zip(cases, resolved, strict=True):
        recipes[number] = recipe
    return Decided(recipes=recipes, prices=prices(list(cases.values())), refused=refused)


def _case(home: Home, recipe: EstimatedRecipe, place: Place) -> Case:
    assert not isinstance(recipe, MergeRecipe)
    return Case(
        recipe=recipe,
        arch=read_architecture(model_files(home, recipe)),
        reward=reward_architecture(home, recipe)[0] if isinstance(recipe, PPORecipe) else None,
        gpus=place.gpus,
        on_gpu=place.on_gpu,
        bytes=place.bytes,
        place=place.name,
    )


def _largest_batch(
    recipe: EstimatedRecipe, measure: Callable[[EstimatedRecipe], Estimate], place: Place
) -> tuple[EstimatedRecipe, tuple[int, int] | None]:
    """Return the recipe, with numbers in place of `auto` where some fit, and the largest micro-batch that fits."""
    if isinstance(recipe, MergeRecipe) or getattr(recipe, "max_tokens_per_micro_batch", None) is not None:
        return recipe, None
    largest = largest_micro_batch(recipe, measure, place.bytes)
    if largest is None:
        return recipe, None
    batch = (largest.micro_batch_size, largest.gradient_accumulation_steps)
    return (largest if recipe.per_device_train_batch_size == "auto" else recipe), batch


def _sharded(recipe: EstimatedRecipe, architecture: Architecture, place: Place, shard: Sharding) -> MemoryPlan:
    if not isinstance(recipe, SFTRecipe | RewardRecipe):
        raise UsageError(
            f"`--shard {shard.kind}` knows the steps of sft and reward; a {recipe.stage} run cannot be sharded: "
            "it samples, merges or compares with whole models. Leave `--shard` out."
        )
    estimated = estimate_sharded(recipe, architecture, shard, on_gpu=place.on_gpu)
    return MemoryPlan(
        architecture=architecture, estimate=estimated, fits=fits(estimated, place.bytes), suggestions=[], shard=shard
    )


def reward_architecture(home: Home, recipe: PPORecipe) -> tuple[Architecture | None, str | None]:
    """Return the reward model's architecture, and what had to be assumed, if anything.

    None: it is an adapter on the policy's base.
    """
    where, note = reward_files(home, recipe)
    return (read_architecture(where) if where else None), note


def reward_files(home: Home, recipe: PPORecipe) -> tuple[Path | None, str | None]:
    """Return where a separate reward model lies, else None; and what had to be assumed, if anything."""
    path = recipe.reward_model_path
    if not path or path == PLACEHOLDER:  # a pipeline wires one in that was trained on the policy's base
        return None, None
    where = _trained(home, path) or locate(home, path)
    if where is None:
        return None, "the reward model is not on this machine and is taken for an adapter on the policy's base"
    if not (where / _ADAPTER).is_file():
        return where, None
    base = locate(home, _base_of(where))
    return (None if base == locate(home, recipe.model_name_or_path) else base), None


def model_files(home: Home, recipe: EstimatedRecipe) -> Path:
    """Return the directory or file of the model that a recipe loads.

    Raises:
        UsageError: it is not on this machine.
    """
    if isinstance(recipe, MergeRecipe):
        name = recipe.adapter_path
        where = _trained(home, name) or locate(home, name)
        if where and (where / _ADAPTER).is_file():
            name = recipe.base_model_name_or_path or _base_of(where)
            where = locate(home, name)
        key = "adapter_path"
    else:
        key, name = "model_name_or_path", recipe.model_name_or_path
        where = locate(home, name)
    if where is None:
        raise UsageError(
            f"`{key}: {one_line(name)}`: its files are not on this machine, and nothing is downloaded to plan. "
            "Name a local directory with the model's config.json, which is all that a plan needs."
        )
    return where


def _trained(home: Home, name: str) -> Path | None:
    """Return what a training run left, adapter or whole model; None when this is no run."""
    if not RUN_ID.fullmatch(name):
        return None
    try:
        run = home.run(name)
    except UsageError:  # a well-formed name without a run: it may still be a path or a hub id
        return None
    return run.adapter if run.adapter.is_dir() else run.merged if run.merged.is_dir() else None


def _base_of(adapter: Path) -> str:
    """Read the name of an adapter's base.

    Raises:
        UsageError: it does not say.
    """
    for file, key in ((_BASE, "name"), (_ADAPTER, "base_model_name_or_path")):
        try:
            facts = any_object(adapter / file)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise UsageError(f"{adapter / file}: cannot be read: {error}.") from None
        name = facts.get(key)
        if isinstance(name, str) and name:
            return name
    raise UsageError(f"{adapter}: the adapter does not say which base it belongs to.")
