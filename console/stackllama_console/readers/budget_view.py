"""The budget panel's content: the engine's estimate for a recipe, a model and this machine. No Textual.

Everything is in bytes. Names are sanitised here; panels show them as they are.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from stackllama_engine.budget import fit
from stackllama_engine.budget.architecture import Architecture
from stackllama_engine.budget.auto import Case, prices, resolve_or_nearest
from stackllama_engine.budget.calibration import Calibration
from stackllama_engine.budget.estimate import Estimate, EstimatedRecipe, estimate
from stackllama_engine.budget.rules import Rule, rules_for
from stackllama_engine.budget.speeds import MEASURED, speed_of
from stackllama_engine.contract.errors import RecipeError
from stackllama_engine.contract.recipe import AnyRecipe, MergeRecipe, PipelineRecipe
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.stages import PIPELINE_STAGES, Stage
from stackllama_engine.launch.sections import stage_recipe

from ..sanitise import one_line
from ..units import number, size
from .form_text import write

Verdict = Literal["yes", "tight", "no", "unknown"]

_IN_NAME = re.compile(r"(?<![a-zA-Z0-9.])(\d{1,4}(?:\.\d{1,3})?)\s?([bBmM])(?![a-zA-Z0-9])")
_ANY = 1 << 62
"""Bytes that everything fits into."""


class Memory(Struct, frozen=True):
    """One place for a process: a GPU, or a machine's RAM."""

    name: str
    total: int
    free: int
    device: str = ""
    """Which of several of this name, as in ``GPU 7``."""


class Part(Struct, frozen=True):
    """One component of the peak."""

    name: str
    bytes: int


class Offer(Struct, frozen=True):
    """A change that saves memory."""

    title: str
    saving: int
    price: str
    changes: dict[str, str]
    """Form keys → what would be typed."""
    fits: Verdict = "unknown"


class Precision(Struct, frozen=True):
    """The price of one `base_precision`, in memory and in speed."""

    name: str
    device: tuple[int, int]
    checkpointing: bool
    fits: Verdict
    speed: str
    chosen: bool
    """It is the one of this plan."""


class BudgetView(Struct, frozen=True, kw_only=True):
    """Content of the panel; equal views look the same."""

    model: str = ""
    parameters: int | None = None
    guessed: bool = False
    """The parameters are read from the model's name alone."""
    least: bool = False
    """There are at least so many parameters: the model is not known."""
    memories: tuple[Memory, ...] = ()
    """The devices of the run, one a process; of a run on the CPU the RAM."""
    note: str = ""
    """About the devices: that there is no GPU, that a run leaves some out."""
    parts: tuple[Part, ...] = ()
    allocated: int = 0
    reserved: tuple[int, int] = (0, 0)
    device: tuple[int, int] = (0, 0)
    peak: str = ""
    """The phase that takes most; in a pipeline with its stage."""
    verdict: Verdict = "unknown"
    reason: str = ""
    rules: tuple[Rule, ...] = ()
    """Published rules of thumb, the one for this kind of run first."""
    offers: tuple[Offer, ...] = ()
    together: Verdict = "unknown"
    """The verdict with every offer applied; unknown while one of them alone makes it fit."""
    precisions: tuple[Precision, ...] = ()
    """What each precision of the base costs; empty where there is no choice."""
    measured: str = ""
    """Where the speeds come from."""
    caveat: str = ""
    """Why there is no estimate, or why it is rough."""


class _Part(Struct, frozen=True):
    """One stage on the devices that it runs on."""

    recipe: EstimatedRecipe
    estimate: Estimate
    stage: Stage | None
    """None: the recipe is not a pipeline's."""
    on_gpu: bool
    processes: int
    memories: tuple[Memory, ...]
    calibration: Calibration | None
    calibrated: str | None
    """A note that earlier runs gave the range; None: they did not."""

    @property
    def room(self) -> int | None:
        """Free bytes for one process; None where nobody knows."""
        return self._least([one.free for one in self.memories])

    @property
    def empty(self) -> int | None:
        """Total bytes for one process, as if nothing else ran."""
        return self._least([one.total for one in self.memories])

    @property
    def rank(self) -> tuple[int, bool, int]:
        """Sort key of the part to show, which has the greatest.

        What does not fit comes before what is unknown, then what is on a GPU, then the largest.
        """
        verdict = fit.fits(self.estimate, self.room if self.room is not None else _ANY)
        return fit.severity(verdict), self.on_gpu, self.estimate.device[1]

    def adjust(self, recipe: EstimatedRecipe, estimate: Estimate) -> Estimate:
        """Calibrate the estimate of a changed recipe."""
        calibration = self.calibration
        if calibration is None:
            return estimate
        return calibration.narrow(estimate, recipe, gpus=self.processes, on_gpu=self.on_gpu)[0]

    def _least(self, sizes: list[int]) -> int | None:
        return min(sizes) // (1 if self.on_gpu else self.processes) if sizes else None


def build_view(
    recipe: AnyRecipe | None,
    architecture: Architecture | None,
    gpus: Sequence[Memory],
    ram: Memory | None = None,
    *,
    model: str = "",
    reward: Architecture | None = None,
    error: str = "",
    calibration: Calibration | None = None,
) -> BudgetView:
    """Build the budget of a recipe on this machine, in a few milliseconds.

    Args:
        recipe: what the form says; None while it has errors.
        architecture: of the model; None while it is not known.
        gpus: the visible GPUs.
        ram: the machine's main memory, for runs on the CPU.
        model: the name to show; empty: the architecture's.
        reward: PPO with a reward model of its own.
        error: why recipe or architecture is missing, in one sentence.
        calibration: what earlier runs measured here.
    """
    name = one_line(model or (architecture.name if architecture else ""))
    if recipe is None or architecture is None:
        return _without_estimate(name, architecture, gpus, ram, one_line(error))
    stages = list(_stages(recipe))
    cases = {
        number: _case(one, architecture, gpus, ram, reward)
        for number, (_, one) in enumerate(stages)
        if not isinstance(one, MergeRecipe)
    }
    resolved, refused = resolve_or_nearest(list(cases.values()))
    for index, decided in zip(cases, resolved, strict=True):
        stages[index] = (stages[index][0], decided)
    parts = [_part(stage, one, architecture, gpus, ram, reward, calibration) for stage, one in stages]
    worst = max(parts, key=lambda part: part.rank)
    verdict, reason = _verdict(worst)
    if worst.estimate.unknown:
        return _unknown_view(name, architecture, worst, reason, _note(gpus, worst))
    suggestions = _suggestions(worst, architecture, reward) if verdict in ("tight", "no") else []
    return BudgetView(
        model=name,
        parameters=architecture.parameters,
        memories=_shown(worst.memories),
        note="; ".join(filter(None, (_note(gpus, worst), worst.calibrated))),
        parts=tuple(Part(one.name, one.bytes) for one in worst.estimate.components if one.bytes),
        allocated=worst.estimate.allocated,
        reserved=worst.estimate.reserved,
        device=worst.estimate.device,
        peak=f"{worst.stage} {worst.estimate.peak}" if worst.stage else worst.estimate.peak,
        verdict=verdict,
        reason=reason,
        rules=_rules(worst.estimate.rules, worst.recipe),
        offers=_offers(worst, suggestions),
        together=_together(worst, suggestions, architecture, reward),
        precisions=(priced := _precisions(worst, list(cases.values()))),
        measured=MEASURED if priced else "",
        caveat=one_line(worst.estimate.rough or refused or error),
    )


def _unknown_view(name: str, architecture: Architecture, part: _Part, reason: str, note: str) -> BudgetView:
    """Build a view without anything that could be taken for an estimate: what is certain, and why no more."""
    is_known = architecture.unknown is None
    return BudgetView(
        model=name,
        parameters=architecture.parameters,
        least=not is_known,
        memories=_shown(part.memories),
        note=note,
        verdict="unknown",
        reason=reason,
        rules=_rules(part.estimate.rules, part.recipe) if is_known else (),
        caveat=one_line("; ".join(filter(None, (part.estimate.unknown, part.estimate.rough)))),
    )


def gib(count: float) -> str:
    """Format bytes as everywhere (`units.size`); nothing as ``0.0 GiB``."""
    return size(count) if count else "0.0 GiB"


def gib_range(interval: tuple[int, int]) -> str:
    """Format an interval as ``21.3–24.1 GiB``; one number where both ends look the same."""
    low, high = (gib(end) for end in interval)
    if low == high:
        return low
    unit = high.split()[-1]
    return f"{low.removesuffix(f' {unit}')}–{high}"


def billions(count: int) -> str:
    """Format a number of parameters as people name it: ``6.7 B``, ``385 k``."""
    for scale, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= scale:
            return f"{number(count / scale, digits=3)} {unit}"
    return str(count)


def parameters_of_name(name: str) -> int | None:
    """Read the size off a model's name, as in ``Llama-2-7b-hf``; None where it gives none."""
    sizes = {"b": 10**9, "m": 10**6}
    matches = _IN_NAME.findall(name)
    return round(float(matches[-1][0]) * sizes[matches[-1][1].lower()]) if matches else None


def _without_estimate(
    name: str, architecture: Architecture | None, gpus: Sequence[Memory], ram: Memory | None, error: str
) -> BudgetView:
    """Build a view of the rules of thumb alone, from the parameters where they are known."""
    parameters = architecture.parameters if architecture else parameters_of_name(name)
    memories = tuple(gpus) or ((ram,) if ram else ())
    return BudgetView(
        model=name,
        parameters=parameters,
        guessed=architecture is None and parameters is not None,
        least=architecture is not None and architecture.unknown is not None,
        memories=_shown(memories),
        note="" if gpus else "no GPU; showing CPU memory",
        reason=error or ("no estimate yet" if name else "choose a model"),
        rules=_rules(rules_for(parameters), None) if parameters and not (architecture and architecture.unknown) else (),
    )


def _stages(recipe: AnyRecipe) -> Iterator[tuple[Stage | None, EstimatedRecipe]]:
    if not isinstance(recipe, PipelineRecipe):
        yield None, recipe
        return
    for stage in (*PIPELINE_STAGES, Stage.MERGE):
        part = stage_recipe(recipe, stage)
        assert not isinstance(part, PipelineRecipe)
        yield stage, part


def _part(
    stage: Stage | None,
    recipe: EstimatedRecipe,
    architecture: Architecture,
    gpus: Sequence[Memory],
    ram: Memory | None,
    reward: Architecture | None,
    calibration: Calibration | None,
) -> _Part:
    on_gpu = bool(gpus) and not recipe.use_cpu
    processes = recipe.num_processes or (len(gpus) if on_gpu else 1)
    memories = tuple(gpus[:processes]) if on_gpu else (ram,) if ram else ()
    card = min((one.total for one in memories), default=None)
    estimated = estimate(recipe, architecture, gpus=processes, on_gpu=on_gpu, reward=reward, device_bytes=card)
    calibrated = None
    if calibration:
        estimated, calibrated = calibration.narrow(estimated, recipe, gpus=processes, on_gpu=on_gpu)
    return _Part(recipe, estimated, stage, on_gpu, processes, memories, calibration, calibrated)


def _case(
    recipe: EstimatedRecipe,
    architecture: Architecture,
    gpus: Sequence[Memory],
    ram: Memory | None,
    reward: Architecture | None,
) -> Case:
    """Return what `auto` is decided from at launch: whole cards, whatever else they hold now."""
    assert not isinstance(recipe, MergeRecipe)
    on_gpu = bool(gpus) and not recipe.use_cpu
    processes = recipe.num_processes or (len(gpus) if on_gpu else 1)
    if on_gpu:
        smallest = min(gpus[:processes], key=lambda one: one.total)
        size, place = smallest.total, one_line(f"{smallest.device} {smallest.name}")
    else:
        size, place = (ram.total // processes if ram else None), "main memory"
    return Case(recipe=recipe, arch=architecture, reward=reward, gpus=processes, on_gpu=on_gpu, bytes=size, place=place)


def _precisions(worst: _Part, cases: list[Case]) -> tuple[Precision, ...]:
    """Return what each precision costs; none where the stage that is shown has no base to choose one for."""
    if isinstance(worst.recipe, MergeRecipe):
        return ()
    return tuple(
        Precision(
            name=price.precision,
            device=price.device,
            checkpointing=price.checkpointing,
            fits=price.fits,
            speed=speed_of(price.precision),
            chosen=price.precision == worst.recipe.base_precision,
        )
        for price in prices(cases)
    )


def _shown(memories: Sequence[Memory]) -> tuple[Memory, ...]:
    return tuple(msgspec.structs.replace(one, name=one_line(one.name)) for one in memories)


def _verdict(part: _Part) -> tuple[Verdict, str]:
    room, empty, (low, high) = part.room, part.empty, part.estimate.device
    if part.estimate.unknown:
        return "unknown", fit.at_least(part.estimate, empty)
    if room is None or empty is None:
        return "unknown", f"needs {gib_range(part.estimate.device)}"
    verdict = fit.fits(part.estimate, room)
    each = " per process" if part.processes > 1 else ""
    if verdict == "yes":
        return verdict, f"at most {gib(high)}{each} of {gib(room)} free"
    if room < empty and fit.fits(part.estimate, empty) == "yes":
        return verdict, f"{gib(high)}{each} would fit, but only {gib(room)} of {gib(empty)} are free"
    if verdict == "tight":
        return verdict, f"{gib_range(part.estimate.device)}{each}, {gib(room)} free: it may run out"
    return verdict, f"at least {gib(low)}{each}, {gib(low - room)} more than is free"


def _note(gpus: Sequence[Memory], part: _Part) -> str:
    if not gpus:
        return "no GPU; showing CPU memory"
    if not part.on_gpu:
        return "on the CPU, as `use_cpu` asks"
    if part.processes > len(gpus):
        return f"{part.processes} processes asked for, {len(gpus)} GPUs here"
    return f"{part.processes} of {len(gpus)} GPUs" if part.processes < len(gpus) else ""


def _rules(rules: list[Rule], recipe: EstimatedRecipe | None) -> tuple[Rule, ...]:
    """Return the rules that apply to this recipe, its own kind's first; without a recipe all but Adam's."""
    quoted = [rule for rule in rules if "LoRA" in rule.name]
    full = [rule for rule in rules if rule.name.startswith("full")]
    if recipe is None:
        return (*quoted, *full, *(rule for rule in rules if rule.name.startswith("weights")))
    trains_all = not isinstance(recipe, MergeRecipe) and not recipe.use_peft
    return (*full, *quoted) if trains_all else tuple(quoted)


def _suggestions(worst: _Part, architecture: Architecture, reward: Architecture | None) -> list[fit.Suggestion]:
    if worst.room is None:
        return []
    suggestions = fit.suggestions(
        worst.recipe,
        architecture,
        worst.room,
        gpus=worst.processes,
        on_gpu=worst.on_gpu,
        reward=reward,
        adjust=worst.adjust,
        card=worst.empty,
    )
    # where only several changes together are enough, they come first
    suggestions.sort(key=lambda one: one.fits != "yes")
    return suggestions


def _offers(worst: _Part, suggestions: list[fit.Suggestion]) -> tuple[Offer, ...]:
    prefix = f"{worst.stage}." if worst.stage else ""
    return tuple(
        Offer(
            title=f"{worst.stage}: {one.title}" if worst.stage else one.title,
            saving=one.saving,
            price=one.price,
            changes={f"{prefix}{key}": write(value) for key, value in one.changes.items()},
            fits=one.fits,
        )
        for one in suggestions
    )


def _together(
    worst: _Part, suggestions: list[fit.Suggestion], architecture: Architecture, reward: Architecture | None
) -> Verdict:
    """Check all changes at once, where none suffices alone; of two that exclude each other the better one."""
    if worst.room is None or not suggestions or any(one.fits == "yes" for one in suggestions):
        return "unknown"
    values: dict[str, object] = msgspec.to_builtins(worst.recipe)
    changed = worst.recipe
    changes: dict[str, Any] = {}
    for one in sorted(suggestions, key=lambda one: -one.saving):
        more = one.changes | changes
        try:
            tried = build_recipe(worst.recipe.stage, values | more)
        except RecipeError:  # one that saves more excludes it, as 4 bits do 8
            continue
        assert not isinstance(tried, PipelineRecipe)
        changed, changes = tried, more
    after = estimate(
        changed, architecture, gpus=worst.processes, on_gpu=worst.on_gpu, reward=reward, device_bytes=worst.empty
    )
    return fit.fits(worst.adjust(changed, after), worst.room)
