# pyright: basic
"""Trace of two optimizer steps of the preference stage: the policy's pass, the reference's, the loss, the update."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...contract.recipe import PreferenceRecipe
from ...train import models, optimizers, right_padding
from . import build, cuda, marks
from .storages import Storages
from .supervised import autocast

REFERENCE = "reference"


def trace(recipe: PreferenceRecipe, config: dict[str, Any], layers: int, storages: Storages) -> None:
    """Fill ``storages.peaks`` with the phases of the second step."""
    from trl.trainer.utils import add_fused_lm_head

    with torch.device("meta"):
        base = build.base(config, layers, recipe)
        model: Any = models.add_lora(base, recipe, "CAUSAL_LM")
        models.trainables_to_fp32(model)
    if recipe.checkpointing:
        build.checkpointing(model, recipe)
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    marks.mark_layers(model, storages)
    with storages.following():
        build.fake(model)
        model.train()
        masked = right_padding.keeps_mask(base, torch.device("cuda"), bf16=recipe.bf16 or recipe.fp16)
        _steps(model, recipe, storages, masked)


def _steps(model: Any, recipe: PreferenceRecipe, storages: Storages, masked: bool) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = cuda.as_on_cuda(optimizers.build(recipe, trained))
    batches = min(2, recipe.gradient_accumulation_steps)
    for step in range(2):
        if step:
            storages.forget_peaks()
        for _ in range(batches):
            storages.enter_phase(marks.FORWARD)
            with autocast(recipe):
                loss = _loss(model, recipe, _batch(recipe, masked), storages)
            (loss / batches).backward()
        storages.enter_phase(marks.STEP)
        nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _batch(recipe: PreferenceRecipe, masked: bool) -> dict[str, Tensor]:
    """Allocate the longest micro-batch: both responses of every pair."""
    ids = torch.zeros(2 * recipe.micro_batch_size, recipe.max_length, dtype=torch.int64)
    mask = {"attention_mask": torch.ones_like(ids)} if masked else {}
    return {"input_ids": ids, "labels": torch.zeros_like(ids), **mask}


def _loss(model: Any, recipe: PreferenceRecipe, inputs: dict[str, Tensor], storages: Storages) -> Tensor:
    """Compute TRL's loss: policy, then the reference with adapter and checkpointing off, then −log σ of the margins."""
    policy = model(**inputs, use_cache=False, fused_lm_head=True).log_probs.sum(1)
    storages.enter_phase(REFERENCE)
    with torch.no_grad(), _without_checkpointing(model), model.disable_adapter():
        reference = model(**inputs, use_cache=False, fused_lm_head=True).log_probs.sum(1)
    storages.enter_phase(marks.LOSS)
    chosen, rejected = (policy - reference).chunk(2)
    return -nn.functional.logsigmoid(recipe.beta * (chosen - rejected)).mean()


@contextmanager
def _without_checkpointing(model: Any) -> Iterator[None]:
    checkpointed = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in checkpointed:
        module.gradient_checkpointing = False
    yield
    for module in checkpointed:
        module.gradient_checkpointing = True
