"""The budget's estimate for an existing run, from its own files: recipe, launch, and the models it names."""

from pathlib import Path

from msgspec import Struct

from ..budget import least
from ..budget.architecture import Architecture
from ..budget.estimate import Estimate, estimate
from ..budget.model_files import read_architecture
from ..contract.atomic_files import existing
from ..contract.errors import UsageError
from ..contract.recipe import PPORecipe, TrainedRecipe
from ..contract.recipe_io import load_recipe
from ..contract.run_dir import RunDir
from ..contract.stages import TRAINING_STAGES, Stage
from ..contract.user_files import any_object
from .gpus import first_card
from .hub_cache import cached_model

_ADAPTER_FILES = (("base.json", "name"), ("adapter_config.json", "base_model_name_or_path"))


class Expected(Struct, frozen=True, kw_only=True):
    """A training run, and its estimate on one of its devices."""

    recipe: TrainedRecipe
    architecture: Architecture
    reward: Architecture | None
    """PPO's reward model where it is one of its own."""
    gpus: int
    on_gpu: bool
    estimate: Estimate


def expected(run: RunDir, stage: Stage) -> Expected | None:
    """Estimate a launched training run.

    None for other runs, and where the model's files are not here, or not known.

    Raises:
        UsageError: recipe, launch or model files cannot be read.
    """
    if stage not in TRAINING_STAGES:
        return None
    recipe = load_recipe(stage, run.recipe_file)
    assert isinstance(recipe, TrainedRecipe)
    files = model_files(recipe.model_name_or_path)
    if files is None:
        return None
    environment = run.read_launch().environment
    on_gpu = environment.get("ACCELERATE_USE_CPU") == "false"
    gpus = recipe.num_processes or 1
    architecture = read_architecture(files)
    reward = own_reward(recipe, files) if isinstance(recipe, PPORecipe) else None
    if least.unknown(recipe, architecture, reward):
        return None
    card = first_card() if on_gpu and isinstance(recipe, PPORecipe) and recipe.use_vllm else None
    return Expected(
        recipe=recipe,
        architecture=architecture,
        reward=reward,
        gpus=gpus,
        on_gpu=on_gpu,
        estimate=estimate(
            recipe, architecture, gpus=gpus, on_gpu=on_gpu, reward=reward, device_bytes=card.memory if card else None
        ),
    )


def own_reward(recipe: PPORecipe, base: Path) -> Architecture | None:
    """Return the reward model's own architecture; None: there is none, or an adapter on the policy's base.

    A reward model that is not here is taken for an adapter.
    """
    files = model_files(recipe.reward_model_path)
    if files is None:
        return None
    named = _base_of(files)
    if named is None:
        return read_architecture(files)
    other = model_files(named)
    return None if other in (None, base) else read_architecture(other)


def _base_of(adapter: Path) -> str | None:
    """Return the base that an adapter names; None for what is no adapter.

    Raises:
        UsageError: unreadable.
    """
    if not (adapter / "adapter_config.json").is_file():
        return None
    for file, key in _ADAPTER_FILES:
        try:
            facts = any_object(adapter / file)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise UsageError(f"{adapter / file}: cannot be read: {error}.") from None
        if isinstance(name := facts.get(key), str) and name:
            return name
    return ""


def model_files(name: str | None, revision: str | None = None) -> Path | None:
    """Return the files of a resolved recipe's path or hub id; None: they are not on this machine.

    Args:
        name: of a model.
        revision: of the hub; only the main one's files are looked for.
    """
    return (existing(name) or (None if revision else cached_model(name))) if name else None
