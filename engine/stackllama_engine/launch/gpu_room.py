"""Whether the GPUs of a run have room for it now, by the budget's word: other people's processes are never touched."""

from collections.abc import Callable

from msgspec import Struct

from ..budget import least
from ..budget.estimate import estimate
from ..budget.model_files import read_architecture
from ..contract.errors import RefusedError, UsageError
from ..contract.recipe import PPORecipe
from ..contract.recipe_io import load_recipe
from ..contract.run_dir import Launch, RunDir
from ..contract.stages import Stage
from .expected import TrainedRecipe, model_files, own_reward
from .gpu_watch import watched_cards
from .gpus import first_card, visible_gpus
from .nvml import Gpu, known_gpus
from .preflight import training_stages

_SECONDS = 2.0  # to wait for NVML
_IDLE = 0.03  # share of a GPU's memory that a driver may hold with no process on it
_GIB = 1 << 30


class Need(Struct, frozen=True):
    """What a run needs of each of its GPUs: bytes, None where nobody can say; the GPUs' indices, None for all."""

    bytes: int | None
    cards: tuple[int, ...] | None

    @property
    def any(self) -> bool:
        """Whether it needs a GPU at all."""
        return self.cards != () and self.bytes != 0


def need_of(run: RunDir, launch: Launch, stage: Stage) -> Need:
    """Return what a launched run needs: of a pipeline, what the stage needs that takes most.

    Raises:
        UsageError: its recipe or the files of its model cannot be read.
    """
    stages = [recipe for recipe in training_stages(load_recipe(stage, run.recipe_file)) if not recipe.use_cpu]
    if stage is not Stage.PIPELINE:
        found = watched_cards(launch)
        cards = None if found is None else tuple(found)
    else:
        cards = _visible([recipe.num_processes for recipe in stages]) if stages else ()
    sizes = [_bytes(recipe) for recipe in stages]
    return Need(None if None in sizes else max(filter(None, sizes), default=0), cards)


def no_room(need: Need, gpus: Callable[[float], list[Gpu]] = known_gpus) -> str:
    """Return why a run has no room now, in words without a full stop; empty where it has.

    A GPU that nobody else computes on has room whatever the estimate: waiting would change nothing.
    """
    if not need.any:
        return ""
    try:
        present = gpus(_SECONDS)
    except RefusedError as error:
        return str(error).partition(":")[0]
    for gpu in present:
        if need.cards is not None and gpu.index not in need.cards:
            continue
        if gpu.free + gpu.desktop >= gpu.memory * (1 - _IDLE) or (need.bytes is not None and gpu.free >= need.bytes):
            continue
        wanted = "how much it needs is not known" if need.bytes is None else f"it needs {need.bytes / _GIB:.1f}"
        free = f"{gpu.free / _GIB:.1f} of {gpu.memory / _GIB:.1f} GiB are free"
        return f"waiting for memory of GPU {gpu.index}: {wanted}, {free}"
    return ""


def _visible(processes: list[int | None]) -> tuple[int, ...] | None:
    """Return the indices of the GPUs that stages of so many processes take, one each; None stands for all visible."""
    most = None if None in processes else max(filter(None, processes))
    names = visible_gpus(seconds=_SECONDS)[:most]
    return tuple(map(int, names)) if all(name.isdecimal() for name in names) else None


def _bytes(recipe: TrainedRecipe) -> int | None:
    """Return the most that the budget expects on one GPU; None where it cannot say."""
    files = model_files(recipe.model_name_or_path, recipe.model_revision)
    if files is None:
        return None
    try:
        architecture = read_architecture(files)
        reward = own_reward(recipe, files) if isinstance(recipe, PPORecipe) else None
    except (UsageError, OSError):
        return None
    if least.unknown(recipe, architecture, reward):
        return None
    total = None
    if isinstance(recipe, PPORecipe) and recipe.use_vllm:  # which takes a share of the whole GPU
        card = first_card(_SECONDS)
        if card is None:
            return None
        total = card.memory
    gpus = recipe.num_processes or 1
    return estimate(recipe, architecture, gpus=gpus, on_gpu=True, reward=reward, device_bytes=total).device[1]
