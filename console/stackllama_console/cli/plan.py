"""``plan``: the memory that a recipe needs, before anything is loaded.

It answers interactively: what only some plans need is imported where it is needed.
"""

import argparse
from typing import TYPE_CHECKING, Any

import msgspec

from stackllama_engine.budget.cards import device_memory
from stackllama_engine.budget.estimate import EstimatedRecipe
from stackllama_engine.budget.fit import at_least, severity
from stackllama_engine.budget.sharding import Sharding
from stackllama_engine.budget.speeds import MEASURED, TOKENS_PER_SECOND, speed_of
from stackllama_engine.contract.errors import ExitCode, UsageError
from stackllama_engine.contract.recipe import AnyRecipe, MergeRecipe, PipelineRecipe, SFTRecipe, TrainedRecipe
from stackllama_engine.contract.recipe_io import read_recipe
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import PIPELINE_STAGES, Stage
from stackllama_engine.launch.sections import stage_recipe

from ..readers.memory_plan import Decided, MemoryPlan, Place, decide, make_plan
from ..units import size
from .output import paint, say, say_notes, show, show_fields, show_json, show_table
from .recipe_args import split_words

if TYPE_CHECKING:
    from stackllama_engine.budget.calibration import Calibration

    from ..readers.plan_trace import Compared

_VERDICTS = {
    "yes": ("it fits", "green"),
    "tight": ("it may fit", "yellow"),
    "no": ("it does not fit", "red"),
    "unknown": ("unknown", "magenta"),
}
_ESTIMATED = ("allocated", "reserved", "device", "phase", "components", "phases", "rule_of_thumb")
"""Keys of the document that are null where the verdict is unknown."""

_BATCH_KEYS = ("per_device_train_batch_size", "gradient_accumulation_steps")
_SHARDED = "sharded by {} across {} GPUs (estimate only; launch does not shard)"


def plan(arguments: argparse.Namespace) -> int:
    """Run ``plan STAGE``; exit code 0 whether it fits or not, 1 where the verdict is unknown."""
    stage = Stage(arguments.stage)
    file, overrides = split_words(arguments.words)
    reading = read_recipe(stage, file, overrides)
    say_notes(reading.notes)
    recipe = reading.recipe
    home = Home(arguments.home)
    memory = device_memory(arguments.gpu) if arguments.gpu else None
    calibration = _calibration(home) if memory is None else None  # another card: what was measured here says nothing
    stages = [(one, _place(one, memory, arguments)) for one in _stages(recipe)]
    decided = decide(home, stages)
    places = list(zip(decided.recipes, (place for _, place in stages), strict=True))
    plans = [
        (one, where, make_plan(home, one, where, calibration, _sharding(where, arguments))) for one, where in places
    ]
    asked = plans
    if memory is not None:
        for one, where, made in plans:
            if not where.on_gpu:
                say(_on_the_cpu(one, made, where, arguments.gpu))
        asked = [made for made in plans if made[1].on_gpu] or plans  # the question is whether that card is enough
    largest, place, worst = max(asked, key=lambda made: (severity(made[2].fits), *_demand(made)))
    code = ExitCode.FAILED if worst.fits == "unknown" else ExitCode.DONE
    traced = _trace(home, largest) if arguments.trace else None
    if arguments.json:
        document = as_document(worst, place) | _precisions_document(largest, decided)
        if isinstance(recipe, PipelineRecipe):
            stages = {str(one.stage): as_document(made, where) for one, where, made in plans}
            document |= {"stage": str(largest.stage), "stages": stages}
        if traced:
            document["trace"] = _traced_document(traced)
        show_json(document | {"notes": reading.notes})
        return code
    if isinstance(recipe, PipelineRecipe):
        needs_most = max(asked, key=_demand)[0] is largest and worst.fits != "unknown"
        of_kind = "GPU memory" if place.on_gpu else "memory"
        reason = f"needs the most {of_kind} of" if needs_most else "decides the verdict of"
        say(f"{largest.stage} {reason} all pipeline stages.")
    _print(largest, worst, place)
    _print_precisions(largest, decided)
    if traced:
        _print_trace(traced)
    return code


def _demand(made: tuple[EstimatedRecipe, Place, MemoryPlan]) -> tuple[bool, int]:
    """Return the sort key of a stage's demand: what runs on a GPU comes before the CPU's, whose memory is larger."""
    _, place, found = made
    return place.on_gpu, found.estimate.device[1]


def _on_the_cpu(recipe: EstimatedRecipe, made: MemoryPlan, place: Place, gpu: str) -> str:
    """Return the line about a stage that does not use the card that was named."""
    estimate = made.estimate
    needed = at_least(estimate) if estimate.unknown else _interval(estimate.device)
    return (
        f"{recipe.stage} runs on the CPU (`use_cpu: true`), not on {gpu}: it needs {needed} of main memory; "
        f"this machine has {size(place.bytes)}."
    )


def as_document(made: MemoryPlan, place: Place) -> dict[str, Any]:
    """Return a plan as JSON; every amount in bytes, and null where the verdict is unknown."""
    estimate, arch = made.estimate, made.architecture
    document: dict[str, Any] = {
        "allocated": estimate.allocated,
        "reserved": list(estimate.reserved),
        "device": list(estimate.device),
        "phase": estimate.peak,
        "components": {one.name: one.bytes for one in estimate.components},
        "phases": {one.name: one.bytes for one in estimate.phases},
        "rule_of_thumb": [msgspec.to_builtins(rule) for rule in estimate.rules],
        "fits": made.fits,
        "unknown": estimate.unknown,
        "at_least": estimate.least if estimate.unknown else None,
        "batch": dict(zip(_BATCH_KEYS, made.batch, strict=True)) if made.batch else None,
        "suggestions": msgspec.to_builtins(made.suggestions),
        "rough": estimate.rough,
        "calibrated": made.calibrated,
        "model": {"name": arch.name, "type": arch.model_type, "parameters": arch.parameters},
        "place": msgspec.to_builtins(place),
        "shard": msgspec.to_builtins(made.shard),
    }
    return document | dict.fromkeys(_ESTIMATED) if estimate.unknown else document


def _precisions_document(recipe: EstimatedRecipe, decided: Decided) -> dict[str, Any]:
    """Return the decided keys of a stage, and what each precision costs; bytes, and tokens per second or null."""
    if isinstance(recipe, MergeRecipe):
        return {"base_precision": None, "gradient_checkpointing": None, "precisions": [], "refused": None}
    return {
        "base_precision": recipe.base_precision,
        "gradient_checkpointing": recipe.checkpointing,
        "precisions": [
            msgspec.to_builtins(price)
            | {
                "tokens_per_second": (speed := TOKENS_PER_SECOND.get(price.precision)),
                "measured": MEASURED if speed else None,
            }
            for price in decided.prices
        ],
        "refused": decided.refused or None,
    }


def _print_precisions(recipe: EstimatedRecipe, decided: Decided) -> None:
    """Print what each precision costs, in memory and in speed, and the one of this plan."""
    if decided.refused:
        show()
        show(decided.refused)
    if isinstance(recipe, MergeRecipe) or not decided.prices:
        return
    show()
    rows = [
        (
            f"{price.precision}{' *' if price.precision == recipe.base_precision else ''}",
            _interval(price.device),
            _VERDICTS[price.fits][0],
            "on" if price.checkpointing else "off",
            speed_of(price.precision),
        )
        for price in decided.prices
    ]
    columns = ("BASE PRECISION", "DEVICE", "VERDICT", "CHECKPOINTING", "SPEED")
    show_table(columns, rows, {text: hue for text, hue in _VERDICTS.values()}, 2)
    show(f"* in this plan. Speed: {MEASURED}.")


def _traced_document(traced: "Compared") -> dict[str, Any]:
    return {
        "formula": traced.formula,
        "allocated": traced.trace.allocated,
        "difference": traced.difference,
        "phase": traced.trace.peak,
        "phases": traced.trace.phases,
        "seconds": traced.trace.seconds,
        "versions": traced.trace.versions,
    }


def _stages(recipe: AnyRecipe) -> list[EstimatedRecipe]:
    """Return the recipe itself, or the stages of a pipeline, each with the pipeline's first model."""
    if not isinstance(recipe, PipelineRecipe):
        return [recipe]
    base = stage_recipe(recipe, Stage.SFT)
    assert isinstance(base, SFTRecipe)
    stages: list[EstimatedRecipe] = []
    for stage in PIPELINE_STAGES:
        section = stage_recipe(recipe, stage)
        assert isinstance(section, TrainedRecipe)
        stages.append(msgspec.structs.replace(section, model_name_or_path=base.model_name_or_path))
    merge = stage_recipe(recipe, Stage.MERGE)
    assert isinstance(merge, MergeRecipe)
    return [*stages, msgspec.structs.replace(merge, adapter_path=base.model_name_or_path)]


def _place(recipe: EstimatedRecipe, memory: int | None, arguments: argparse.Namespace) -> Place:
    """Return the named device, else a GPU of this machine; for a recipe that runs on the CPU, this machine's memory."""
    if recipe.use_cpu:
        return _main_memory(recipe, arguments)
    processes = arguments.gpus or recipe.num_processes
    if memory is not None:
        return Place(bytes=memory, name=arguments.gpu, on_gpu=True, gpus=processes or 1)
    from stackllama_engine.launch.nvml import known_gpus

    gpus = known_gpus()
    if not gpus:
        return _main_memory(recipe, arguments)
    smallest = min(gpus, key=lambda gpu: gpu.memory)
    return Place(bytes=smallest.memory, name=smallest.name, on_gpu=True, gpus=processes or len(gpus))


def _main_memory(recipe: EstimatedRecipe, arguments: argparse.Namespace) -> Place:
    from stackllama_engine.launch.main_memory import main_memory

    processes = 1 if isinstance(recipe, MergeRecipe) else arguments.gpus or 1
    return Place(bytes=main_memory().total, name="this machine's memory", on_gpu=False, gpus=processes)


def _sharding(place: Place, arguments: argparse.Namespace) -> Sharding | None:
    if arguments.shard is None:
        return None
    ranks = arguments.gpus or place.gpus
    if ranks < 2:
        raise UsageError(f"`--shard {arguments.shard}` shards a run across GPUs; say how many: `--gpus 8`.")
    return Sharding(kind=arguments.shard, ranks=ranks)


def _calibration(home: Home) -> "Calibration | None":
    from stackllama_engine.budget.calibration import FILE

    if not (home.path / FILE).exists():
        return None
    from stackllama_engine.launch.calibrate import calibration

    try:
        return calibration(home.path)
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}.") from None


def _trace(home: Home, recipe: EstimatedRecipe) -> "Compared":
    from ..readers.plan_trace import compare

    return compare(home, recipe)


def _print(recipe: EstimatedRecipe, made: MemoryPlan, place: Place) -> None:
    import sys

    estimate, arch = made.estimate, made.architecture
    verdict, colour = _VERDICTS[made.fits]
    count = f"{'at least ' if arch.unknown else ''}{_count(arch.parameters)} parameters"
    about = [
        ("model", f"{arch.name}: {arch.model_type}, {count}"),
        ("place", f"{place.name}, {size(place.bytes)}" + (f", one of {place.gpus}" if place.gpus > 1 else "")),
        *([("what if", _SHARDED.format(made.shard.kind, made.shard.ranks))] if made.shard else []),
    ]
    if estimate.unknown:
        said = f"{verdict}: {at_least(estimate, place.bytes)}"
        show_fields([*about, ("verdict", paint(said, colour, sys.stdout)), ("because", estimate.unknown)])
        return
    overhead = "the CUDA context" if place.on_gpu else "the process itself"
    show_fields(
        [
            *about,
            ("verdict", paint(verdict, colour, sys.stdout)),
            ("allocated", f"{size(estimate.allocated)} at its peak ({recipe.stage}, {estimate.peak})"),
            ("reserved", _interval(estimate.reserved)),
            ("device", f"{_interval(estimate.device)}, including {overhead}"),
            *([("batch", f"largest that fits: {_batch(made.batch)}")] if made.batch else []),
            *([("measured", made.calibrated)] if made.calibrated else []),
            *([("rough", estimate.rough)] if estimate.rough else []),
        ]
    )
    show()
    parts = sorted(estimate.components, key=lambda one: -one.bytes)
    show_table(("AT THE PEAK", "SIZE"), [(one.name, size(one.bytes)) for one in parts], {}, 1)
    show()
    show_table(("PHASE", "ALLOCATED"), [(one.name, size(one.bytes)) for one in estimate.phases], {}, 1)
    show()
    rules = [(rule.name, _interval((rule.low, rule.high))) for rule in estimate.rules]
    show_table(("RULE OF THUMB", "SIZE"), rules, {}, 1)
    if made.suggestions and made.fits != "yes":
        show()
        rows = [
            (_VERDICTS[one.fits][0], size(one.saving), one.title, _overrides(one.changes)) for one in made.suggestions
        ]
        show_table(("THEN", "SAVES", "CHANGE", "KEYS"), rows, {text: hue for text, hue in _VERDICTS.values()}, 0)


def _batch(batch: tuple[int, int]) -> str:
    size, accumulation = batch
    return f"micro-batch {size} × {accumulation} accumulated ({_overrides(dict(zip(_BATCH_KEYS, batch, strict=True)))})"


def _overrides(changes: dict[str, Any]) -> str:
    """Return the changes as words of the command line."""
    words = ((key, str(value).lower() if isinstance(value, bool) else value) for key, value in changes.items())
    return " ".join(f"{key}={value}" for key, value in words)


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} billion" if parameters >= 1e8 else f"{parameters / 1e6:.2f} million"


def _interval(bounds: tuple[int, int]) -> str:
    low, high = (size(bound) for bound in bounds)
    return low if low == high else f"{low} to {high}"


def _print_trace(traced: "Compared") -> None:
    """Print both estimates, their difference, and what the trace measured in each phase."""
    show()
    versions = ", ".join(f"{name} {version}" for name, version in traced.trace.versions.items())
    formula = f"formula {size(traced.formula)}, " if traced.formula is not None else ""
    show_fields(
        [
            ("on one GPU", f"{formula}trace {size(traced.trace.allocated)} allocated"),
            *([("difference", f"{traced.difference:+.2%}")] if traced.difference is not None else []),
            ("followed", versions),
        ]
    )
    show()
    rows = [(name, size(count)) for name, count in traced.trace.phases.items()]
    show_table(("TRACED PHASE", "ALLOCATED"), rows, {}, 1)
