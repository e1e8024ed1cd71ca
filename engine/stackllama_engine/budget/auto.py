"""Values for `base_precision: auto` and `gradient_checkpointing: auto`, from the memory estimate.

`base_precision`: the first of bfloat16, int8 and nf4 in which every stage that asks fits its GPU, so that the neediest
stage of a pipeline decides for all. A base that cannot be quantised (full training, a .gguf file, vLLM, a mixture of
experts) and a run on the CPU stay unquantised. `gradient_checkpointing`: on where the stage does not fit without.
Only the formula decides, not the measurements of earlier runs: equal recipes get equal values on equal cards.
"""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from ..contract.errors import RefusedError
from ..contract.recipe import PPORecipe, TrainedRecipe, TrainRecipe
from ..contract.recipe_common import AUTO_BATCH
from .architecture import Architecture
from .estimate import Estimate, estimate
from .fit import Fits, at_least, fits, severity

QUANTISED = ("int8", "nf4")
_GIB = 1 << 30


class Case(Struct, frozen=True, kw_only=True):
    """One stage, and the device that it runs on.

    Attributes:
        recipe: its keys.
        arch: sizes of its model; None: its files are not on this machine.
        reward: sizes of PPO's separate reward model.
        gpus: number of processes.
        on_gpu: on GPUs, or in main memory.
        bytes: memory of the smallest of its devices; None: not known.
        place: the device's name, for messages.
    """

    recipe: TrainedRecipe
    arch: Architecture | None
    reward: Architecture | None = None
    gpus: int = 1
    on_gpu: bool = True
    bytes: int | None = None
    place: str = "the GPU"


class Option(Struct, frozen=True, kw_only=True):
    """A stage with its keys decided one way.

    Attributes:
        recipe: without an `auto`.
        estimate: its memory; None: not known.
        fits: the verdict.
    """

    recipe: TrainedRecipe
    estimate: Estimate | None
    fits: Fits


class Price(Struct, frozen=True, kw_only=True):
    """Memory of a run in one precision, at its neediest stage, with checkpointing where that stage needs it."""

    precision: str
    stage: str
    checkpointing: bool
    device: tuple[int, int]
    fits: Fits


def has_auto(recipe: TrainRecipe) -> list[str]:
    """List the keys that are still to be decided."""
    return [key for key in ("base_precision", "gradient_checkpointing") if getattr(recipe, key) == "auto"]


def resolve(cases: Sequence[Case]) -> list[TrainedRecipe]:
    """Return the stages with every `auto` decided.

    Args:
        cases: a single stage, or all stages of a pipeline that train.

    Raises:
        RefusedError: no precision fits, or the memory is not known; the message says which keys to set.
    """
    asking = [case for case in cases if case.recipe.base_precision == "auto" and len(precisions(case)) > 1]
    level = _level(asking) if asking else 0
    return [decide(case, level).recipe for case in cases]


def resolve_or_nearest(cases: Sequence[Case]) -> tuple[list[TrainedRecipe], str]:
    """Decide as :func:`resolve`; where that refuses, take the last precision, and return the reason as well."""
    try:
        return resolve(cases), ""
    except RefusedError as error:
        return [decide(case, len(QUANTISED)).recipe for case in cases], str(error)


def prices(cases: Sequence[Case]) -> list[Price]:
    """Return a run's memory in each precision that it can have, the most precise first; empty without a choice.

    Keys that the recipe sets count too: this is what changing `base_precision` alone would do.
    """
    asking = [_open(case) for case in cases if len(precisions(case)) > 1]
    made: list[Price] = []
    for level in range(1 + len(QUANTISED)) if asking else ():
        case, option = max(((case, decide(case, level)) for case in asking), key=_demand)
        if option.estimate is None or option.estimate.unknown:
            return []
        made.append(
            Price(
                precision=option.recipe.base_precision,
                stage=str(case.recipe.stage),
                checkpointing=option.recipe.checkpointing,
                device=option.estimate.device,
                fits=option.fits,
            )
        )
    return made


def _open(case: Case) -> Case:
    """Return the case with `base_precision` open."""
    recipe = case.recipe
    dtype = "auto" if recipe.base_precision == "bf16" else recipe.dtype
    return msgspec.structs.replace(case, recipe=msgspec.structs.replace(recipe, base_precision="auto", dtype=dtype))


def precisions(case: Case) -> list[str]:
    """List the values of `base_precision` that a stage can have on its device, the most precise first."""
    recipe = case.recipe
    plain = "bf16" if recipe.dtype in ("auto", "bfloat16") and not recipe.fp16 and recipe.use_peft else "dtype"
    if not case.on_gpu:
        return ["dtype"]
    whole = not recipe.use_peft or recipe.model_name_or_path.endswith(".gguf")
    whole = whole or (isinstance(recipe, PPORecipe) and recipe.use_vllm) or bool(case.arch and case.arch.expert)
    return [plain] if whole else [plain, *QUANTISED]


def decide(case: Case, level: int) -> Option:
    """Decide the keys of one stage.

    Args:
        case: the stage.
        level: index of its precision, if that is open, among :func:`precisions`; the last one if it has fewer.
    """
    recipe = case.recipe
    if recipe.base_precision == "auto":
        possible = precisions(case)
        recipe = msgspec.structs.replace(recipe, base_precision=possible[min(level, len(possible) - 1)])
    if recipe.gradient_checkpointing != "auto":
        return _measured(case, recipe)
    without, with_it = (
        _measured(case, msgspec.structs.replace(recipe, gradient_checkpointing=checkpointing))
        for checkpointing in (False, True)
    )
    if without.fits == "unknown":  # a CPU's memory is large, a GPU's is not
        return with_it if case.on_gpu else without
    return without if without.fits == "yes" else with_it


def _level(asking: Sequence[Case]) -> int:
    """Return the first level at which every stage fits, else the one that comes closest to it.

    Raises:
        RefusedError: none may fit, or the memory is not known.
    """
    levels = range(max(len(precisions(case)) for case in asking))
    tries = [[(case, decide(case, level)) for case in asking] for level in levels]
    for case, first in tries[0]:
        if first.fits == "unknown":
            raise RefusedError(
                f"`base_precision: auto` needs an estimate of memory, and there is none for {case.recipe.stage}: "
                f"{_why_unknown(case, first)}. Set `base_precision` to bf16, int8 or nf4."
            )
    worst = [max(level, key=_demand) for level in tries]
    fitting = [level for level in levels if worst[level][1].fits == "yes"]
    best = fitting[0] if fitting else min(levels, key=lambda level: _demand(worst[level]))
    case, option = worst[best]
    if option.fits == "no" and option.estimate and case.bytes is not None:
        size = case.recipe.per_device_train_batch_size
        counted = f" with micro-batches of {AUTO_BATCH}" if size == "auto" else ""
        raise RefusedError(
            f"`base_precision: auto`: {case.recipe.stage} fits in no precision{counted}: it needs at least "
            f"{option.estimate.device[0] / _GIB:.1f} GiB in {option.recipe.base_precision}, and {case.place} has "
            f"{case.bytes / _GIB:.1f} GiB. `stackllama-console plan` lists what saves memory; to launch it all the "
            "same, set `base_precision`."
        )
    return best


def _demand(made: tuple[Case, Option]) -> tuple[int, int]:
    """Return the sort key of a decided stage; the neediest one has the greatest."""
    _, option = made
    return severity(option.fits), option.estimate.device[1] if option.estimate else 0


def _measured(case: Case, recipe: TrainedRecipe) -> Option:
    if case.arch is None or case.bytes is None:
        return Option(recipe=recipe, estimate=None, fits="unknown")
    found = estimate(recipe, case.arch, gpus=case.gpus, on_gpu=case.on_gpu, reward=case.reward, device_bytes=case.bytes)
    return Option(recipe=recipe, estimate=found, fits=fits(found, case.bytes))


def _why_unknown(case: Case, option: Option) -> str:
    if case.arch is None:
        at = f" at `model_revision: {case.recipe.model_revision}`" if case.recipe.model_revision else ""
        name = case.recipe.model_name_or_path
        return (
            f"the files of `{name}`{at} are not on this machine (`hf download` brings a hub model's), or say no sizes"
        )
    if option.estimate and option.estimate.unknown:
        return f"{option.estimate.unknown} ({at_least(option.estimate, case.bytes)})"
    return f"the driver does not say how much memory {case.place} has"
