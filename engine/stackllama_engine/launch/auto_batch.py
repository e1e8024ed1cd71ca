"""`per_device_train_batch_size: auto`, resolved at launch: the largest micro-batch that fits this machine's memory.

Accumulation changes with it, the effective batch never does. The numbers are written into the run's recipe, and a
resume keeps them. PPO's canary runs the worst case of them before training.
"""

from collections.abc import Sequence

from ..budget.architecture import Architecture
from ..budget.auto_batch import largest_micro_batch
from ..budget.estimate import Estimate, estimate
from ..budget.model_files import read_architecture
from ..contract.errors import RecipeError
from ..contract.recipe import AnyRecipe, PPORecipe, PreferenceRecipe, RewardRecipe, SFTRecipe, TrainedRecipe
from .expected import model_files, own_reward
from .gpus import smallest_card
from .main_memory import main_memory

_SET = "set `per_device_train_batch_size` to a number"


def resolve_batch(recipe: AnyRecipe, gpus: Sequence[str]) -> AnyRecipe:
    """Return the recipe with numbers for `auto`; a pipeline's stages are resolved when each is launched.

    Args:
        recipe: with its inputs and its number of processes resolved.
        gpus: those that it may see.

    Raises:
        RecipeError: its memory is not known, or nothing fits.
    """
    match recipe:
        case SFTRecipe() | RewardRecipe() | PreferenceRecipe() | PPORecipe() if (
            recipe.per_device_train_batch_size == "auto"
        ):
            return _resolve(recipe, [] if recipe.use_cpu else gpus)
        case _:
            return recipe


def refuse_open_batch(recipe: AnyRecipe, why: str) -> None:
    """Refuse a recipe whose batch size would not be resolved.

    Args:
        recipe: of any stage.
        why: why it would not, a sentence.

    Raises:
        RecipeError: it says `auto`.
    """
    if isinstance(recipe, TrainedRecipe) and recipe.per_device_train_batch_size == "auto":
        raise RecipeError(f"recipe: `per_device_train_batch_size: auto`: {why}; {_SET}.")


def batch_notices(request: AnyRecipe, recipe: AnyRecipe) -> list[str]:
    """Return a sentence on what `auto` became.

    Args:
        request: the recipe as it was given.
        recipe: the same, resolved.
    """
    if not isinstance(request, TrainedRecipe) or request.per_device_train_batch_size != "auto":
        return []
    assert isinstance(recipe, TrainedRecipe)
    return [
        f"`per_device_train_batch_size: auto` is {recipe.per_device_train_batch_size}, with "
        f"`gradient_accumulation_steps: {recipe.gradient_accumulation_steps}`: the largest micro-batch that fits"
    ]


def _resolve(recipe: TrainedRecipe, gpus: Sequence[str]) -> TrainedRecipe:
    processes, on_gpu = recipe.num_processes or 1, bool(gpus)
    card = smallest_card([*gpus[:processes]]) if on_gpu else None
    if on_gpu and card is None:
        refuse_open_batch(recipe, "the GPU's memory is not known here")
    memory = card.memory if card else main_memory().total // processes
    files = model_files(recipe.model_name_or_path, recipe.model_revision)
    if files is None:
        refuse_open_batch(recipe, f"the files of {recipe.model_name_or_path} are not on this machine to be measured")
    assert files is not None
    architecture = read_architecture(files)
    reward: Architecture | None = own_reward(recipe, files) if isinstance(recipe, PPORecipe) else None

    def measure(one: TrainedRecipe) -> Estimate:
        return estimate(
            one, architecture, gpus=processes, on_gpu=on_gpu, reward=reward, device_bytes=memory if on_gpu else None
        )

    if why := measure(recipe).unknown:
        refuse_open_batch(recipe, f"the memory that this run needs is unknown ({why})")
    chosen = largest_micro_batch(recipe, measure, memory)
    if chosen is None:
        where = card.name if card else "main memory"
        refuse_open_batch(
            recipe, f"not even a micro-batch of 1 fits into {memory / (1 << 30):.1f} GiB ({where}); see `plan`"
        )
    assert chosen is not None
    return chosen
