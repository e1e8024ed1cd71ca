"""Merging an adapter into its base, and proof that the saved result is what it should be.

The base is loaded without quantisation (a merge into 8-bit weights would round the adapter away), the adapter is
added once in the target dtype, and the saved directory is loaded again: on probe prompts it must give what base and
adapter gave, and not what the base alone gives. Merging a reward adapter in the published recipe silently lost its
score head (huggingface/trl#297, #368); here the reloaded head is compared with the trained one.
"""

import gc
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor

from ..contract.errors import StageError
from ..contract.recipe import MergeRecipe
from ..data import demo
from . import models
from .ppo.scorer import score_weight
from .ppo.shared_base import read_identity
from .rows import encode_prompt
from .session import Session

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBES = 8
TOLERANCE = 0.1
"""Largest mean difference between merged and unmerged output, relative to what the adapter changes."""
RESOLUTION = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3}
"""Mean difference, relative to the size of the outputs, that rounding of the weights alone explains."""


class Differences(NamedTuple):
    """Mean absolute differences of outputs on the probe prompts."""

    merged: float
    """Merged and reloaded against base + adapter."""
    adapter: float
    """Base + adapter against the base alone."""
    scale: float
    """Mean absolute output of base + adapter."""


def run(recipe: MergeRecipe, session: Session) -> dict[str, Any]:
    """Run the stage to its end; returns the facts for ``result.json``.

    Raises:
        StageError: nothing to merge, or the merged model is not base + adapter.
    """
    session.reporter.phase("load")
    source = Path(recipe.adapter_path)
    if not (source / "adapter_config.json").is_file():
        return _cast(recipe, source, session)
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    identity, reward = read_identity(source), config.get("task_type") == "SEQ_CLS"
    tokenizer = models.load_tokenizer(str(source))
    probes = _probes(tokenizer, recipe.seed)
    base = models.load_plain(str(identity["name"]), identity["revision"], recipe.dtype, reward, session.device)
    if reward:
        score_weight(source)  # refuse an adapter whose score head is lost, before anything is computed
        base.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model = PeftModel.from_pretrained(base, str(source)).eval()
    with_adapter = outputs(model, probes, session.device)
    with model.disable_adapter():
        without = outputs(model, probes, session.device)
    session.reporter.phase("merge")
    merged = model.merge_and_unload(safe_merge=True)
    staging = _save(merged, tokenizer, session)
    del base, model, merged
    gc.collect()
    session.reporter.phase("verify")
    reloaded = models.load_plain(str(staging), None, recipe.dtype, reward, session.device).eval()
    differences = compare(outputs(reloaded, probes, session.device), with_adapter, without)
    if reward:
        _check_head(reloaded, source)
    check(differences, recipe.dtype)
    staging.replace(session.run.merged)
    return {
        "path": str(session.run.merged),
        "difference": differences.merged,
        "difference_from_base": differences.adapter,
        "probes": PROBES,
        "dtype": recipe.dtype,
    }


@torch.no_grad()
def outputs(model: Any, probes: list[list[int]], device: torch.device) -> Tensor:
    """Next-token log-probabilities (or scores) of each probe, float32 on the CPU, one row a probe."""
    rows: list[Tensor] = []
    for ids in probes:
        logits = model(input_ids=torch.tensor([ids], device=device)).logits.float()
        rows.append(logits[0] if logits.dim() == 2 else torch.log_softmax(logits[0, -1], -1))
    return torch.stack(rows).cpu()


def compare(merged: Tensor, with_adapter: Tensor, without: Tensor) -> Differences:
    """How far apart the three are; same shapes."""
    return Differences(
        merged=float((merged - with_adapter).abs().mean()),
        adapter=float((with_adapter - without).abs().mean()),
        scale=float(with_adapter.abs().mean()),
    )


def check(differences: Differences, dtype: str) -> None:
    """Accept a merge or say why not.

    Raises:
        StageError: the adapter does nothing, or the merged model is not base + adapter.
    """
    if differences.adapter == 0:
        raise StageError("The adapter changes nothing: base and base + adapter give the same output on every probe.")
    allowed = min(RESOLUTION[dtype] * differences.scale, 0.5 * differences.adapter)
    if differences.merged > max(allowed, TOLERANCE * differences.adapter):
        raise StageError(
            f"The merged model differs from base + adapter by {differences.merged:.3g}, while the adapter itself "
            f"changes the base by {differences.adapter:.3g}: rounding to {dtype} loses it. "
            "Merge with `dtype: float32`, or share the adapter."
        )


def _check_head(reloaded: "PreTrainedModel", source: Path) -> None:
    head = next(reloaded.get_submodule("score").parameters()).detach().cpu()
    if not torch.equal(head, score_weight(source).to(head.dtype)):
        raise StageError("The merged model does not hold the trained score head: its reward would be random.")


def _probes(tokenizer: "PreTrainedTokenizerBase", seed: int) -> list[list[int]]:
    """Prompts in the template; any language model gives each of them some distribution."""
    return [encode_prompt(tokenizer, question) for question in demo.questions("evaluation", seed)[:PROBES]]


def _save(model: Any, tokenizer: "PreTrainedTokenizerBase", session: Session) -> Path:
    session.reporter.phase("save")
    staging = session.run.path / ".tmp-merged"
    shutil.rmtree(staging, ignore_errors=True)
    model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    return staging


def _cast(recipe: MergeRecipe, source: Path, session: Session) -> dict[str, Any]:
    """After full training there is no adapter: the model itself is stored in the target dtype."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    reward = any("SequenceClassification" in name for name in config.get("architectures") or [])
    tokenizer = models.load_tokenizer(str(source))
    model = models.load_plain(str(source), None, recipe.dtype, reward, session.device)
    _save(model, tokenizer, session).replace(session.run.merged)
    return {"path": str(session.run.merged), "difference": 0.0, "dtype": recipe.dtype}
