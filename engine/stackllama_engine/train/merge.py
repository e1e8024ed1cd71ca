"""Merging an adapter into its base, and proof that the saved result is what it should be.

The base is loaded without quantisation (a merge into 8-bit weights would round the adapter away) and everything is
computed in float32, so that what is compared is the weights and not the noise of the arithmetic. On probe prompts

1. the merged model must give what base and adapter gave, before anything is rounded;
2. the saved directory, loaded again, must still do so, up to what rounding to the target dtype explains, and must
   not give what the base alone gives.

Both differences are held against what the adapter changes, and neither can be told from noise below a floor: that of
float32 arithmetic, and of rounding to the target dtype. A young adapter may change less than that (peft#1035); it is
merged, and the result says that it was too small to verify.

Merging a reward adapter in the published recipe silently lost its score head (huggingface/trl#297, #368); here the
reloaded head is compared with the trained one. Peak memory is the model in float32.
"""

import errno
import gc
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..contract.base import BASE_FILE, DEMO_BASE, Base, find_base
from ..contract.disk_space import free, mib
from ..contract.errors import StageError
from ..contract.prompt_format import PromptFormat, read_prompt_format
from ..contract.recipe import MergeRecipe
from ..contract.run_dir import Home
from ..data import demo_data
from . import models
from .encoding import Encoder
from .loading import one_line
from .pending_writes import is_disk_full
from .ppo.shared_base import score_weight
from .prompt_formats import generation_stops
from .session import Session

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBES = 8
EXACT = 1e-3
"""Largest difference before rounding, relative to what the adapter changes."""
ROUNDED = 0.5
"""Largest difference after rounding, relative to what the adapter changes: more, and the rounding lost it."""
CAST = 0.05
"""Largest difference for a whole model that is only cast, relative to its outputs."""

NOISE = 4.0
"""Largest difference as a multiple of the measured noise: two measurements of one noise differ by less."""
HALF = 0.5
"""Share of the adapter's effect that a check has to tell from nothing; with less, it verifies nothing."""
OFF_GRID = 1.37
"""A factor that moves weights between the values of a 16-bit dtype; any that is no power of two does."""


class Check(NamedTuple):
    """Result of one comparison of merged and unmerged outputs."""

    difference: float
    noise: float
    verified: bool
    """False: the adapter changes too little to be told from noise."""


def run(recipe: MergeRecipe, session: Session) -> dict[str, Any]:
    """Run the stage to its end; returns the facts for ``result.json``.

    Raises:
        StageError: nothing to merge, or the merged model is not base + adapter.
    """
    session.reporter.phase("load")
    source, staging = Path(recipe.adapter_path), session.run.path / ".tmp-verified"
    try:
        return _merge(recipe, source, staging, session)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _merge(recipe: MergeRecipe, source: Path, staging: Path, session: Session) -> dict[str, Any]:
    """Write base + adapter to ``staging``, verify it there and rename; as :func:`run`."""
    if not (source / "adapter_config.json").is_file():
        return _cast(recipe, source, staging, session)
    reward = _json(source / "adapter_config.json").get("task_type") == "SEQ_CLS"
    where = _base(recipe, source, session)
    tokenizer = models.load_tokenizer(str(source))
    prompt_format = read_prompt_format(source)
    probes = _probes(tokenizer, recipe.seed)
    base = models.load_plain(where.name, where.revision, "float32", session.device, reward=reward, new_head=True)
    if reward:
        score_weight(source)  # refuse an adapter whose score head is lost, before anything is computed
        base.config.get_text_config().pad_token_id = models.pad_id(tokenizer)
    model = models.load_adapter(base, source).eval()
    with_adapter = outputs(model, probes, session.device)
    noise = arithmetic_noise(model, probes, with_adapter, session.device)
    with model.disable_adapter():
        without = outputs(model, probes, session.device)
    session.reporter.phase("merge")
    merged: Any = model.merge_and_unload(safe_merge=True)
    effect = difference(with_adapter, without)
    exact = difference(outputs(merged, probes, session.device), with_adapter)
    before = check(exact, effect, EXACT, noise, "merging went wrong")
    stops = () if reward else generation_stops(str(source), None)
    _save(merged.to(getattr(torch, recipe.dtype)), tokenizer, staging, prompt_format, stops)
    del base, model, merged
    gc.collect()
    session.reporter.phase("verify")
    reloaded = models.load_plain(str(staging), None, "float32", session.device, reward=reward).eval()
    if reward:
        _check_head(reloaded, score_weight(source), recipe)
    again = outputs(reloaded, probes, session.device)
    if recipe.dtype != "float32" and not difference(again, with_adapter) <= ROUNDED * effect:
        noise = max(noise, rounding_noise(reloaded, probes, again, recipe.dtype, session.device))
    loses = f"rounding to {recipe.dtype} loses it; merge with `dtype: float32`"
    after = check(difference(again, with_adapter), effect, ROUNDED, noise, loses)
    staging.replace(session.run.merged)
    verified = before.verified and after.verified
    if not verified:
        session.reporter.health(_too_small(effect, after.noise, recipe))
    return {
        "path": str(session.run.merged),
        "difference": after.difference,
        "difference_from_base": effect,
        "noise": after.noise,
        "verified": verified,
        "probes": PROBES,
        "dtype": recipe.dtype,
    }


def _save(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    staging: Path,
    prompt_format: PromptFormat | None,
    stops: Sequence[int] = (),
) -> None:
    """Write the model where there is room for it; ``stops`` are the tokens that end a response.

    Raises:
        StageError: there is none; nothing of it is left behind.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    try:
        if not free(staging.parent).holds(size, 1):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(staging))
        models.save_model(model, tokenizer, staging, prompt_format, stops)
    except Exception as error:  # libraries report a full disk in classes of their own
        if not is_disk_full(error):
            raise
        raise StageError(
            f"The disk is full: the merged model takes {mib(size)} ({size:,} bytes) under {staging.parent}, where "
            f"there are {free(staging.parent)}. Nothing of it was left behind; make room, then resume."
        ) from error


def _base(recipe: MergeRecipe, source: Path, session: Session) -> Base:
    """Find the adapter's base: as named, as recorded, or a model of this home with the same weights."""
    merges = [run.merged for run in Home(session.run.path.parents[1]).runs() if run.merged.is_dir()]
    try:
        base = find_base(source, recipe.base_model_name_or_path, [*merges, DEMO_BASE])
    except OSError as error:
        raise StageError(f"The base of {source} cannot be read: {one_line(error)}.") from error
    if base.notice:
        session.reporter.health(base.notice)
    elif not (source / BASE_FILE).is_file():
        session.reporter.health(f"the adapter's base is {base.name}, by its adapter_config.json")
    return base


def _cast(recipe: MergeRecipe, source: Path, staging: Path, session: Session) -> dict[str, Any]:
    """Store a fully trained model, which has no adapter, in the target dtype, and compare it."""
    if recipe.base_model_name_or_path:
        raise StageError(f"`base_model_name_or_path`: {source} is a whole model and has no base; leave the key out.")
    config = _json(source / "config.json")
    reward = any("SequenceClassification" in name for name in config.get("architectures") or [])
    tokenizer = models.load_tokenizer(str(source))
    probes = _probes(tokenizer, recipe.seed)
    model: Any = models.load_plain(str(source), None, "float32", session.device, reward=reward).eval()
    trained = outputs(model, probes, session.device)
    session.reporter.phase("merge")
    _save(model.to(getattr(torch, recipe.dtype)), tokenizer, staging, read_prompt_format(source))
    session.reporter.phase("verify")
    reloaded = models.load_plain(str(staging), None, "float32", session.device, reward=reward).eval()
    if reward:
        _check_head(reloaded, next(model.get_submodule("score").parameters()).detach().cpu(), recipe)
    deviation = difference(outputs(reloaded, probes, session.device), trained)
    if not deviation <= CAST * magnitude(trained):  # a NaN fails as well
        raise StageError(
            f"The saved model differs from the trained one by {deviation:.3g}, of outputs of {magnitude(trained):.3g}: "
            f"rounding to {recipe.dtype} loses it. The trained model is untouched."
        )
    staging.replace(session.run.merged)
    return {"path": str(session.run.merged), "difference": deviation, "probes": PROBES, "dtype": recipe.dtype}


@torch.no_grad()
def outputs(model: Any, probes: list[list[int]], device: torch.device, copies: int = 1) -> Tensor:
    """Compute next-token log-probabilities (or scores) of each probe, float32 on the CPU, one row per probe.

    Args:
        model: a language model or a classifier.
        probes: token ids.
        device: where it is.
        copies: rows of one forward pass, all the same; the outputs of one of them are returned.
    """
    rows: list[Tensor] = []
    for ids in probes:
        logits = model(input_ids=torch.tensor([ids] * copies, device=device)).logits.float()
        rows.append(logits[-1] if logits.dim() == 2 else torch.log_softmax(logits[-1, -1], -1))
    return torch.stack(rows).cpu()


def difference(one: Tensor, other: Tensor) -> float:
    """Return the mean absolute difference of two outputs of the same shape."""
    return float((one - other).abs().mean())


def magnitude(one: Tensor) -> float:
    """Return the mean absolute output."""
    return float(one.abs().mean())


def arithmetic_noise(model: Any, probes: list[list[int]], reference: Tensor, device: torch.device) -> float:
    """Measure how much float32 arithmetic alone changes the outputs.

    Measured: the same model on the same probes in another batch shape, which sums in another order. At least one unit
    in the last place of an output, where a small model happens to sum alike.

    Args:
        model: any.
        probes: token ids.
        reference: its :func:`outputs`.
        device: where it is.
    """
    measured = difference(outputs(model, probes, device, copies=3), reference)
    return max(measured, torch.finfo(torch.float32).eps * magnitude(reference))


@torch.no_grad()
def rounding_noise(model: Any, probes: list[list[int]], reference: Tensor, dtype: str, device: torch.device) -> float:
    """Measure how much rounding weights to a dtype changes the outputs, whatever the weights.

    They lie on the dtype's grid already; moved off it by a factor, rounded and moved back, each has an error as large
    as any weight's. The model is spent afterwards.

    Args:
        model: float32, its weights rounded to ``dtype`` before.
        probes: token ids.
        reference: its :func:`outputs`.
        dtype: the grid.
        device: where it is.
    """
    for parameter in model.parameters():
        parameter.copy_((parameter * OFF_GRID).to(getattr(torch, dtype)).float() / OFF_GRID)
    return difference(outputs(model, probes, device), reference)


def check(deviation: float, effect: float, allowed: float, noise: float, reason: str) -> Check:
    """Accept a merge or raise why not.

    Args:
        deviation: difference between merged and unmerged output.
        effect: difference between base + adapter and the base alone.
        allowed: largest share of ``effect`` that ``deviation`` may be.
        noise: difference that means nothing.
        reason: what it means when it is more.

    Raises:
        StageError: the merged model is not base + adapter.
    """
    by_effect, by_noise = allowed * effect, NOISE * noise
    if not deviation <= max(by_effect, by_noise):  # a NaN fails as well
        raise StageError(
            f"The merged model differs from base + adapter by {deviation:.3g}, while the adapter changes the base by "
            f"{effect:.3g}: {reason}. The adapter itself is untouched and can be shared."
        )
    return Check(deviation, noise, effect > 0 and (deviation <= by_effect or by_noise <= HALF * effect))


def _too_small(effect: float, noise: float, recipe: MergeRecipe) -> str:
    if effect == 0:
        return "the adapter changes nothing on any probe: merged, and equal to its base; was it trained long enough?"
    rounded = f", or merge with `dtype: float32` instead of {recipe.dtype}" if recipe.dtype != "float32" else ""
    return (
        f"the adapter changes the base by {effect:.3g}, which cannot be told from noise of {noise:.3g}: merged, but "
        f"too small to verify; train longer{rounded}"
    )


def _json(file: Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        StageError: it cannot be read.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(f"{file} cannot be read: {one_line(error)}.") from error
    if not isinstance(content, dict):
        raise StageError(f"{file} cannot be read: it is not a JSON object.")
    return content


def _check_head(reloaded: "PreTrainedModel", trained: Tensor, recipe: MergeRecipe) -> None:
    head = next(reloaded.get_submodule("score").parameters()).detach().cpu()
    if not torch.equal(head, trained.to(getattr(torch, recipe.dtype)).float()):
        raise StageError("The merged model does not hold the trained score head: its reward would be random.")


def _probes(tokenizer: "PreTrainedTokenizerBase", seed: int) -> list[list[int]]:
    """Return prompts as text; any language model gives each of them some distribution."""
    encoder = Encoder(tokenizer, PromptFormat())
    return [encoder.prompt(question) for question in demo_data.questions("evaluation", seed)[:PROBES]]
