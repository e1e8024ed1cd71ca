"""A DPO step for ``formula_vs_trace.py``: the engine has no such stage, so recipe and trace of it are made here.

The recipe is SFT's without packing; ``per_device_train_batch_size`` counts pairs.
"""

from typing import Any

import msgspec
import torch
from torch import nn

from stackllama_engine.budget import estimate, preference
from stackllama_engine.budget.architecture import Architecture
from stackllama_engine.budget.trace import build, cuda, marks, measure, supervised
from stackllama_engine.budget.trace.storages import Storages
from stackllama_engine.contract.recipe import SFTRecipe
from stackllama_engine.train import models, optimizers

REFERENCE = "reference"
_BETA = 0.1


def formula(recipe: SFTRecipe, arch: Architecture) -> dict[str, int]:
    """Return the bytes of each phase on one GPU."""
    work = estimate.workload(recipe, arch, gpus=1, on_gpu=True)
    return {one.name: one.bytes for one in preference.phases(work)}


def trace(recipe: SFTRecipe, config: dict[str, Any]) -> dict[str, int]:
    """Return the same, traced allocation by allocation."""
    few, many = measure.SHALLOW
    depth = build.depth(config)
    low, high = (_peaks(recipe, config, layers) for layers in (few, many))
    return {name: measure.extrapolated(low, [(high, depth)], name) for name in low if name in high}


def _peaks(recipe: SFTRecipe, config: dict[str, Any], layers: int) -> dict[str, int]:
    from trl.trainer.utils import add_fused_lm_head

    storages = Storages(cuda.kernels(), cuda.momentary())
    with cuda.stand_ins(padded=True):
        with torch.device("meta"):
            model: Any = models.add_lora(build.base(config, layers, recipe), recipe, "CAUSAL_LM")
            models.trainables_to_fp32(model)
        if recipe.gradient_checkpointing:
            build.checkpointing(model, recipe)
        add_fused_lm_head(model.get_base_model(), outputs=("log_probs",))
        marks.mark_layers(model, storages)
        with storages.following():
            build.fake(model)
            model.train()
            _steps(model, recipe, storages)
    return {name: count for name, count in storages.peaks.items() if name}


def _steps(model: Any, recipe: SFTRecipe, storages: Storages) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = cuda.as_on_cuda(optimizers.build(recipe, trained))
    pairs = msgspec.structs.replace(recipe, per_device_train_batch_size=2 * recipe.per_device_train_batch_size)
    for step in range(2):
        if step:
            storages.forget_peaks()
        storages.enter_phase(marks.FORWARD)
        with supervised.autocast(recipe):
            loss = _loss(model, supervised.batch(pairs, masked=True), storages)
        loss.backward()
        storages.enter_phase(marks.STEP)
        nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _loss(model: Any, inputs: dict[str, torch.Tensor], storages: Storages) -> torch.Tensor:
    """TRL's: policy, then the reference with the adapter off and checkpointing too, then −log σ of the margins."""
    policy = model(**inputs, use_cache=False, fused_lm_head=True).log_probs.sum(1)
    storages.enter_phase(REFERENCE)
    checkpointed = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in checkpointed:
        module.gradient_checkpointing = False
    with torch.no_grad(), model.disable_adapter():
        reference = model(**inputs, use_cache=False, fused_lm_head=True).log_probs.sum(1)
    for module in checkpointed:
        module.gradient_checkpointing = True
    storages.enter_phase(marks.LOSS)
    better, worse = (policy - reference).chunk(2)
    return -nn.functional.logsigmoid(_BETA * (better - worse)).mean()
