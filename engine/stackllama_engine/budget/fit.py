"""Verdict on whether a run fits a device, and recipe changes that would make it fit, with their cost.

Only changes of recipe keys are suggested.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec
from msgspec import Struct

from ..contract.errors import RecipeError
from ..contract.recipe import MergeRecipe, PPORecipe, TrainedRecipe, TrainRecipe
from ..contract.recipe_io import build_recipe
from ..contract.stages import Stage
from .architecture import Architecture
from .estimate import Estimate, EstimatedRecipe, estimate

Fits = Literal["yes", "tight", "no", "unknown"]
Adjust = Callable[[EstimatedRecipe, Estimate], Estimate]
_WORTH = 0.01
"""Minimum saving of a suggestion, as a share of the peak."""
_WORTH_TOGETHER = 0.03
"""Minimum saving of each of several combined changes."""
_MOST_TOGETHER = 8
_SHORTEST = 64
_TOKENS = "max_tokens_per_micro_batch"
_ORDER: dict[Fits, int] = {"yes": 0, "tight": 1, "unknown": 2, "no": 3}


class Suggestion(Struct, frozen=True, kw_only=True):
    """One change of the recipe."""

    title: str
    changes: dict[str, Any]
    """Recipe keys → new values."""
    device_after: tuple[int, int]
    """Device memory after the change: bytes, low and high."""
    fits: Fits
    saving: int
    """Bytes saved at the allocated peak."""
    price: str
    """Cost of the change, in speed or in quality."""


class _Change(Struct, frozen=True):
    title: str
    changes: dict[str, Any]
    price: str


def fits(found: Estimate, device_bytes: int) -> Fits:
    """Return the verdict for an estimate and the memory of a device.

    ``yes``: even the upper end of the interval fits; ``tight``: only the lower end; ``no``: not even that;
    ``unknown``: the estimate is a guess.
    """
    if found.unknown:
        return "unknown"
    low, high = found.device
    if high <= device_bytes:
        return "yes"
    return "tight" if low <= device_bytes else "no"


def severity(verdict: Fits) -> int:
    """Return the rank of a verdict; of several parts of a run, the highest is that of the whole."""
    return _ORDER[verdict]


def at_least(found: Estimate, device_bytes: int | None = None) -> str:
    """Return the text of an unknown verdict: the certain minimum, and whether that alone is too much."""
    text = f"at least {found.least / (1 << 30):.1f} GiB"
    if device_bytes is not None and found.least > device_bytes:
        return f"{text}, which is more than there is"
    return text


def suggestions(
    recipe: EstimatedRecipe,
    arch: Architecture,
    device_bytes: int,
    *,
    gpus: int = 1,
    on_gpu: bool = True,
    reward: Architecture | None = None,
    adjust: Adjust | None = None,
    card: int | None = None,
) -> list[Suggestion]:
    """Suggest changes that save memory: those that make it fit first, the cheapest first among them.

    If none is enough alone, the last suggestion combines several. Every suggestion gives a valid recipe with a known
    estimate; none is made if the recipe's own estimate is unknown.

    Args:
        recipe: the recipe of the run.
        arch: sizes of its model.
        device_bytes: memory of one device.
        gpus: as for :func:`.estimate.estimate`.
        on_gpu: likewise.
        reward: likewise.
        adjust: adjusts an estimate by earlier runs; None: the formula alone.
        card: total memory of the device if ``device_bytes`` is the free part.
    """
    if isinstance(recipe, MergeRecipe):  # it holds nothing but the model in float32
        return []

    workplace = _Workplace(arch, device_bytes, gpus, on_gpu, reward, adjust, card or device_bytes)
    before = workplace.measure(recipe)
    if before.unknown:  # a saving from a guess is another guess
        return []
    ladders = enumerate(_ladders(recipe, on_gpu))
    best = [(rank, workplace.best_of(options, recipe, before)) for rank, options in ladders]
    useful = [(rank, one) for rank, one in best if one and one.saving > _WORTH * before.allocated]
    useful.sort(key=lambda pair: (_ORDER[pair[1].fits], pair[0]))
    ranked = [suggestion for _, suggestion in useful]
    if fits(before, device_bytes) != "yes" and not (ranked and ranked[0].fits == "yes"):
        together = _together(recipe, before, workplace)
        ranked += [together] if together else []
    return ranked


class _Workplace(Struct, frozen=True):
    """Everything that an estimate depends on besides the recipe."""

    arch: Architecture
    device_bytes: int
    gpus: int
    on_gpu: bool
    reward: Architecture | None
    adjust: Adjust | None
    card: int

    def measure(self, recipe: TrainRecipe) -> Estimate:
        assert isinstance(recipe, TrainedRecipe)
        found = estimate(
            recipe, self.arch, gpus=self.gpus, on_gpu=self.on_gpu, reward=self.reward, device_bytes=self.card
        )
        return self.adjust(recipe, found) if self.adjust else found

    def best_of(self, options: list[_Change], recipe: TrainRecipe, before: Estimate) -> Suggestion | None:
        """Return the mildest option that fits, or the one that comes closest."""
        own: dict[str, Any] = msgspec.to_builtins(recipe)
        best: Suggestion | None = None
        for option in options:
            changes = {key: value for key, value in option.changes.items() if own[key] != value}
            changed = _apply(recipe, own | changes)
            if changed is None:
                continue
            after = self.measure(changed)
            if after.unknown:
                continue
            suggestion = Suggestion(
                title=option.title,
                changes=changes,
                device_after=after.device,
                fits=fits(after, self.device_bytes),
                saving=before.allocated - after.allocated,
                price=option.price,
            )
            if best is None or _better(suggestion, best):
                best = suggestion
            if suggestion.fits == "yes":
                break
        return best


def _together(recipe: TrainRecipe, before: Estimate, workplace: _Workplace) -> Suggestion | None:
    """Combine the cheapest useful changes until it fits; None if it never does."""
    current, peak = recipe, before
    steps: dict[str, Suggestion] = {}
    for _ in range(_MOST_TOGETHER):
        ladders = enumerate(_ladders(current, workplace.on_gpu))
        options = ((rank, workplace.best_of(ladder, current, peak)) for rank, ladder in ladders)
        step = next((one for _, one in options if one and one.saving > _WORTH_TOGETHER * peak.allocated), None)
        if step is None:
            return None
        steps[", ".join(step.changes)] = step  # a second step on the same keys replaces the first
        changed = _apply(current, msgspec.to_builtins(current) | step.changes)
        assert changed is not None
        current, peak = changed, workplace.measure(changed)
        if step.fits == "yes":
            own: dict[str, Any] = msgspec.to_builtins(recipe)
            now: dict[str, Any] = msgspec.to_builtins(current)
            return Suggestion(
                title=" + ".join(one.title for one in steps.values()),
                changes={key: value for key, value in now.items() if own[key] != value},
                device_after=peak.device,
                fits=step.fits,
                saving=before.allocated - peak.allocated,
                price="; ".join(dict.fromkeys(one.price for one in steps.values())),
            )
    return None


def _better(one: Suggestion, other: Suggestion) -> bool:
    """Return whether ``one`` is closer to fitting; if neither fits, whether it saves more."""
    if one.fits != other.fits:
        return _ORDER[one.fits] < _ORDER[other.fits]
    return one.fits == "no" and one.saving > other.saving


def _ladders(recipe: TrainRecipe, on_gpu: bool) -> Iterator[list[_Change]]:
    """Yield kinds of change, the cheapest first, each as steps from the mildest on."""
    yield _smaller_batches(recipe)
    yield _rollout_batches(recipe)
    if isinstance(recipe, PPORecipe) and recipe.use_vllm:
        yield [_Change("sampling without vLLM", {"use_vllm": False}, "sampling takes longer")]
    if not recipe.bf16 and not recipe.fp16:
        yield [_Change("bf16 autocast", {"bf16": True}, "none on a GPU that computes in bfloat16")]
    yield _optimizers(recipe, on_gpu)
    if not recipe.checkpointing:
        price = "each layer runs forward twice: about a third slower"
        yield [_Change("gradient checkpointing", {"gradient_checkpointing": True}, price)]
    if not recipe.quantised and recipe.dtype in ("auto", "float32"):
        yield [_Change("weights in bfloat16", {"dtype": "bfloat16"}, "frozen weights rounded to 8 significant bits")]
    if not recipe.use_peft:
        changes = {"use_peft": True}
        yield [_Change("LoRA instead of full training", changes, "can learn less than full training")]
    if not recipe.quantised:
        changes = {"use_peft": True, "base_precision": "int8"}
        price = "less than half the speed of bf16, as measured for a 0.9B reward model on an H200; close to lossless"
        yield [_Change("base in 8 bits", changes, price)]
    if not recipe.load_in_4bit:
        changes = {"use_peft": True, "base_precision": "nf4", "use_bnb_nested_quant": True}
        yield [_Change("base in 4 bits", changes, "slower, and slightly lower quality of the base")]
    yield _shorter(recipe)


def _smaller_batches(recipe: TrainRecipe) -> list[_Change]:
    """List smaller micro-batches, with more accumulation so that an optimizer step has as many sequences."""
    tokens: int | None = getattr(recipe, "max_tokens_per_micro_batch", None)
    if tokens is not None:
        return _fewer_tokens(recipe, tokens)
    size: int = getattr(recipe, "micro_batch_size", 1)
    total = size * recipe.gradient_accumulation_steps
    return [
        _Change(
            f"micro-batch {smaller} × {total // smaller} accumulated",
            {"per_device_train_batch_size": smaller, "gradient_accumulation_steps": total // smaller},
            "the same result; slower if small batches leave the GPU idle",
        )
        for smaller in range(size - 1, 0, -1)
        if total % smaller == 0
    ]


def _fewer_tokens(recipe: TrainRecipe, tokens: int) -> list[_Change]:
    """List smaller limits of tokens per micro-batch, none below the longest row or pair."""
    options: list[_Change] = []
    while (tokens := tokens // 2) and _apply(recipe, msgspec.to_builtins(recipe) | {_TOKENS: tokens}) is not None:
        price = "the same result; slower if small batches leave the GPU idle"
        options.append(_Change(f"{tokens} tokens per micro-batch", {_TOKENS: tokens}, price))
    return options


def _rollout_batches(recipe: TrainRecipe) -> list[_Change]:
    if not isinstance(recipe, PPORecipe):
        return []
    sizes: list[int] = []
    size = recipe.local_rollout_forward_batch_size // 2
    while size:
        sizes.append(size)
        size //= 2
    return [
        _Change(
            f"rollout batch size {size}",
            {"local_rollout_forward_batch_size": size},
            "the same result; sampling takes longer",
        )
        for size in sizes
    ]


def _optimizers(recipe: TrainRecipe, on_gpu: bool) -> list[_Change]:
    """List optimizers with less memory: without temporary copies, then 8-bit moments, then paged 8-bit moments."""
    options: list[_Change] = []
    if recipe.optim == "adamw_torch":
        options.append(_Change("fused AdamW", {"optim": "adamw_torch_fused"}, "none: the same step in one kernel"))
    if recipe.optim in ("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit"):
        price = "moments rounded to 8 bits in blocks of 256; close to lossless"
        options.append(_Change("8-bit optimizer", {"optim": "adamw_8bit"}, price))
    if recipe.optim != "paged_adamw_8bit" and recipe.optim != "adafactor" and on_gpu:
        price = "8-bit moments that move to host memory when the GPU is full, which is slower"
        options.append(_Change("paged 8-bit optimizer", {"optim": "paged_adamw_8bit"}, price))
    return options


def _shorter(recipe: TrainRecipe) -> list[_Change]:
    if isinstance(recipe, PPORecipe):
        key, price = "max_prompt_length", "longer prompts are dropped"
    elif recipe.stage in (Stage.REWARD, Stage.PREFERENCE):
        key, price = "max_length", "longer pairs are dropped"
    else:
        key, price = "max_length", "longer texts are truncated or split"
    length: int = getattr(recipe, key)
    lengths = [length * share // 4 for share in (3, 2, 1) if length * share // 4 >= _SHORTEST]
    return [_Change(f"{key.replace('_', ' ')} {shorter}", {key: shorter}, price) for shorter in lengths]


def _apply(recipe: TrainRecipe, values: dict[str, Any]) -> TrainRecipe | None:
    """Return a recipe with these values; None if its keys exclude each other."""
    try:
        changed = build_recipe(recipe.stage, values)
    except RecipeError:  # such as a .gguf base in 8 bits: that change is impossible for this recipe
        return None
    assert isinstance(changed, TrainRecipe)
    return changed
