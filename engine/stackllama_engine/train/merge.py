"""Merging an adapter into its base, and proof that the saved result is what it should be.

The base is loaded without quantisation (a merge into 8-bit weights would round the adapter away) and everything is
computed in float32, so that what is compared is the weights and not the noise of the arithmetic. On probe prompts

1. the merged model must give what base and adapter gave, before anything is rounded;
2. the saved directory, loaded again, must still do so, up to what rounding to the target dtype explains, and must
   not give what the base alone gives.

Merging a reward adapter in the published recipe silently lost its score head (huggingface/trl#297, #368); here the
reloaded head is compared with the trained one. Peak memory is the model in float32.
"""

import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
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
EXACT = 1e-3
"""Largest difference before rounding, relative to what the adapter changes."""
ROUNDED = 0.5
"""Largest difference after rounding, relative to what the adapter changes: more, and the rounding lost it."""

CAST = 0.05
"""Largest difference for a whole model that is only cast, relative to its outputs."""


def run(recipe: MergeRecipe, session: Session) -> dict[str, Any]:
    """Run the stage to its end; returns the facts for ``result.json``.

    Raises:
        StageError: nothing to merge, or the merged model is not base + adapter.
    """
    session.reporter.phase("load")
    source, staging = Path(recipe.adapter_path), session.run.path / ".tmp-verified"
    if not (source / "adapter_config.json").is_file():
        return _cast(recipe, source, staging, session)
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    identity, reward = read_identity(source), config.get("task_type") == "SEQ_CLS"
    tokenizer = models.load_tokenizer(str(source))
    probes = _probes(tokenizer, recipe.seed)
    name, revision = str(identity["name"]), identity["revision"]
    if not models.same_base(identity, models.base_identity(name, revision)):
        raise StageError(f"{name} is not the base any more that {source} was trained on: its weights have changed.")
    base = models.load_plain(name, revision, "float32", session.device, reward=reward, new_head=True)
    if reward:
        score_weight(source)  # refuse an adapter whose score head is lost, before anything is computed
        base.config.get_text_config().pad_token_id = models.pad_id(tokenizer)
    model = models.load_adapter(base, source).eval()
    with_adapter = outputs(model, probes, session.device)
    with model.disable_adapter():
        without = outputs(model, probes, session.device)
    session.reporter.phase("merge")
    merged: Any = model.merge_and_unload(safe_merge=True)
    effect = difference(with_adapter, without)
    check(difference(outputs(merged, probes, session.device), with_adapter), effect, EXACT, "merging went wrong")
    models.save_model(merged.to(getattr(torch, recipe.dtype)), tokenizer, staging)
    del base, model, merged
    gc.collect()
    session.reporter.phase("verify")
    reloaded = models.load_plain(str(staging), None, "float32", session.device, reward=reward).eval()
    if reward:
        _check_head(reloaded, score_weight(source), recipe)
    rounded = difference(outputs(reloaded, probes, session.device), with_adapter)
    check(rounded, effect, ROUNDED, f"rounding to {recipe.dtype} loses it; merge with `dtype: float32`")
    staging.replace(session.run.merged)
    return {
        "path": str(session.run.merged),
        "difference": rounded,
        "difference_from_base": effect,
        "probes": PROBES,
        "dtype": recipe.dtype,
    }


def _cast(recipe: MergeRecipe, source: Path, staging: Path, session: Session) -> dict[str, Any]:
    """After full training there is no adapter: the model itself is stored in the target dtype, and compared."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    reward = any("SequenceClassification" in name for name in config.get("architectures") or [])
    tokenizer = models.load_tokenizer(str(source))
    probes = _probes(tokenizer, recipe.seed)
    model: Any = models.load_plain(str(source), None, "float32", session.device, reward=reward).eval()
    trained = outputs(model, probes, session.device)
    session.reporter.phase("merge")
    models.save_model(model.to(getattr(torch, recipe.dtype)), tokenizer, staging)
    session.reporter.phase("verify")
    reloaded = models.load_plain(str(staging), None, "float32", session.device, reward=reward).eval()
    if reward:
        _check_head(reloaded, next(model.get_submodule("score").parameters()).detach().cpu(), recipe)
    found = difference(outputs(reloaded, probes, session.device), trained)
    check(found, difference(trained, torch.zeros_like(trained)), CAST, f"rounding to {recipe.dtype} loses it")
    staging.replace(session.run.merged)
    return {"path": str(session.run.merged), "difference": found, "probes": PROBES, "dtype": recipe.dtype}


@torch.no_grad()
def outputs(model: Any, probes: list[list[int]], device: torch.device) -> Tensor:
    """Next-token log-probabilities (or scores) of each probe, float32 on the CPU, one row a probe."""
    rows: list[Tensor] = []
    for ids in probes:
        logits = model(input_ids=torch.tensor([ids], device=device)).logits.float()
        rows.append(logits[0] if logits.dim() == 2 else torch.log_softmax(logits[0, -1], -1))
    return torch.stack(rows).cpu()


def difference(one: Tensor, other: Tensor) -> float:
    """Mean absolute difference of two outputs of the same shape."""
    return float((one - other).abs().mean())


def check(found: float, effect: float, allowed: float, reason: str) -> None:
    """Accept a merge or say why not.

    Args:
        found: difference between merged and unmerged output.
        effect: difference between base + adapter and the base alone.
        allowed: largest share of ``effect`` that ``found`` may be.
        reason: what it means when it is more.

    Raises:
        StageError: the adapter does nothing, or the merged model is not base + adapter.
    """
    if effect == 0:
        raise StageError("The adapter changes nothing: base and base + adapter give the same output on every probe.")
    if not found <= allowed * effect:  # a NaN fails as well
        raise StageError(
            f"The merged model differs from base + adapter by {found:.3g}, while the adapter changes the base by "
            f"{effect:.3g}: {reason}. The adapter itself is untouched and can be shared."
        )


def _check_head(reloaded: "PreTrainedModel", trained: Tensor, recipe: MergeRecipe) -> None:
    head = next(reloaded.get_submodule("score").parameters()).detach().cpu()
    if not torch.equal(head, trained.to(getattr(torch, recipe.dtype)).float()):
        raise StageError("The merged model does not hold the trained score head: its reward would be random.")


def _probes(tokenizer: "PreTrainedTokenizerBase", seed: int) -> list[list[int]]:
    """Prompts in the template; any language model gives each of them some distribution."""
    return [encode_prompt(tokenizer, question) for question in demo.questions("evaluation", seed)[:PROBES]]
