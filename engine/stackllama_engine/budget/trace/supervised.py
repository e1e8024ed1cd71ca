# pyright: basic
"""Trace of two optimizer steps of SFT and of the reward model, in the order of transformers' Trainer."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ...contract.recipe import RewardRecipe, SFTRecipe, SupervisedRecipe, TrainRecipe
from ...train import models, optimizers, right_padding, varlen
from . import build, cuda, marks
from .storages import Storages


def trace(recipe: SupervisedRecipe, config: dict[str, Any], layers: int, storages: Storages) -> None:
    """Fill ``storages.peaks`` with the phases of the second step."""
    pairs = isinstance(recipe, RewardRecipe)
    with torch.device("meta"):
        base = build.base(config, layers, recipe, score=pairs)
        model: Any = models.add_lora(base, recipe, "SEQ_CLS" if pairs else "CAUSAL_LM")
        if recipe.use_peft:
            models.trainables_to_fp32(model)
    if recipe.checkpointing:
        build.checkpointing(model, recipe)
    if not pairs:
        from trl.trainer.utils import add_fused_lm_head

        inner = model.get_base_model() if recipe.use_peft else model
        add_fused_lm_head(inner, outputs=("log_probs", "entropy", "is_top1"))
    marks.mark_layers(model, storages)
    with storages.following():
        build.fake(model)
        model.train()
        masked = needs_mask(base, recipe)
        _steps(model, recipe, storages, masked)


def _steps(model: Any, recipe: SupervisedRecipe, storages: Storages, masked: bool) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = cuda.as_on_cuda(optimizers.build(recipe, trained))
    size = micro_batch(recipe)
    batches = min(2, -(-recipe.micro_batch_size * recipe.gradient_accumulation_steps // size))
    for step in range(2):
        if step:
            storages.forget_peaks()
        for _ in range(batches):
            storages.enter_phase(marks.FORWARD)
            _micro_batch(model, recipe, batches, masked)
        storages.enter_phase(marks.STEP)
        nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _micro_batch(model: Any, recipe: SupervisedRecipe, batches: int, masked: bool) -> None:
    inputs = batch(recipe, masked=masked)
    with autocast(recipe):
        loss = pair_loss(model, recipe, inputs) if isinstance(recipe, RewardRecipe) else sft_loss(model, inputs)
    (loss / batches).backward()


def micro_batch(recipe: SupervisedRecipe) -> int:
    """Return the number of sequences, or pairs, of maximum length per micro-batch."""
    size = recipe.micro_batch_size
    if isinstance(recipe, RewardRecipe) and recipe.max_tokens_per_micro_batch is not None:
        fitting = recipe.max_tokens_per_micro_batch // (2 * recipe.max_length)
        return min(size * recipe.gradient_accumulation_steps, fitting)
    return size


def batch(recipe: SupervisedRecipe, *, masked: bool) -> dict[str, Tensor]:
    """Allocate the longest micro-batch."""
    pairs = isinstance(recipe, RewardRecipe)
    rows = micro_batch(recipe) * (2 if pairs else 1)
    ids = torch.zeros(rows, recipe.max_length, dtype=torch.int64)
    inputs = {"input_ids": ids} | ({"attention_mask": torch.ones_like(ids)} if masked else {})
    return inputs if pairs else inputs | {"labels": torch.zeros_like(ids)}


def needs_mask(base: Any, recipe: SupervisedRecipe) -> bool:
    """Return whether rows have a mask on a GPU: packed ones to keep their documents apart, others for their padding."""
    narrow = recipe.bf16 or recipe.fp16
    if isinstance(recipe, SFTRecipe) and recipe.packing and recipe.packing_strategy != "wrapped":
        return not varlen.takes_bounds(base, recipe.max_length, bf16=narrow)
    return right_padding.keeps_mask(base, torch.device("cuda"), bf16=narrow)


def autocast(recipe: TrainRecipe) -> Any:
    """Return the Trainer's autocast context for forward pass and loss."""
    if not (recipe.bf16 or recipe.fp16):
        return nullcontext()
    return torch.autocast("cpu", torch.bfloat16 if recipe.bf16 else torch.float16)


def sft_loss(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Compute TRL's loss: the mean negative log-likelihood through its fused head."""
    outputs = model(**inputs, use_cache=False, fused_lm_head=True)
    return -outputs.log_probs.sum() / torch.as_tensor(outputs.label_mask.sum()).clamp(min=1)


def pair_loss(model: Any, recipe: RewardRecipe, inputs: dict[str, Tensor]) -> Tensor:
    """Compute TRL's loss: Bradley-Terry, and the centering term if it is enabled."""
    better, worse = torch.chunk(model(**inputs, use_cache=False).logits.float().squeeze(-1), 2)
    loss = -nn.functional.logsigmoid(better - worse).mean()
    if recipe.center_rewards_coefficient is not None:
        loss = loss + recipe.center_rewards_coefficient * torch.mean((better + worse) ** 2)
    return loss
