"""LoRA adapters: their target matrices and number of parameters (arXiv:2106.09685)."""

import re

from ..contract.recipe import TrainRecipe
from ..contract.recipe_common import ALL_LINEAR
from .architecture import Architecture, Linear
from .optimizer import Trained
from .precision import Precision

FUSED = ("w1", "w2", "w3", "gate_up_proj", "experts")
"""Names of the experts of a mixture in PEFT and older checkpoints."""
_PREFIXES = ("", "model.layers.0.self_attn.", "model.layers.0.mlp.", "transformer.h.0.", "gpt_neox.layers.0.attention.")


def targets(arch: Architecture, modules: list[str] | str | None) -> tuple[Linear, ...]:
    """Return the matrices of one layer that the recipe adapts, matched by name as in PEFT.

    Args:
        arch: the model.
        modules: ``lora_target_modules``: a list of name endings, ``all-linear``, a regular expression over full
            names, or None for PEFT's default. Without a default PEFT refuses to start; then all matrices are counted.
    """
    if modules is None:
        if arch.default_targets is None:
            return arch.adaptable
        return tuple(linear for linear in arch.adaptable if linear.name in arch.default_targets)
    if modules == ALL_LINEAR:
        return arch.adaptable
    if isinstance(modules, str):
        return tuple(linear for linear in arch.adaptable if _matches(modules, linear.name))
    return tuple(linear for linear in arch.adaptable if _ends_alike(linear.name, modules))


def names_experts(arch: Architecture, modules: list[str] | str | None) -> bool:
    """Return whether the recipe adapts the experts of a mixture, which PEFT does through their parameters."""
    if not arch.expert or modules is None or modules == ALL_LINEAR:
        return False
    names = [*(linear.name for linear in arch.linears if linear.count > 1), *FUSED]
    if isinstance(modules, str):
        return any(_matches(modules, name) for name in names)
    return any(one.rpartition(".")[2] in names for one in modules)


def fused(recipe: TrainRecipe, arch: Architecture, precision: Precision) -> bool:
    """Return whether adapters run in ``train/fast_lora.py``: on plain linears, all numbers of one width or autocast."""
    plain = precision.quant is None and arch.family != "gpt2"  # whose matrices are convolutions
    return recipe.use_peft and plain and (precision.amp or precision.native == 4)


def parameters(chosen: tuple[Linear, ...], rank: int, layers: int) -> int:
    """Count the elements of A (rank × inputs) and B (outputs × rank) on every chosen matrix of every layer."""
    return layers * sum(rank * (linear.inputs + linear.outputs) * linear.count for linear in chosen)


def tensors(chosen: tuple[Linear, ...], rank: int, layers: int) -> tuple[Trained, ...]:
    """Return A and B of every chosen matrix."""
    return tuple(
        Trained(rows, columns, layers * linear.count)
        for linear in chosen
        for rows, columns in ((rank, linear.inputs), (linear.outputs, rank))
    )


def trained_parameters(recipe: TrainRecipe, arch: Architecture) -> int:
    """Count the trained elements: the adapter, or all with ``use_peft: false``."""
    if not recipe.use_peft:
        return arch.parameters
    return parameters(targets(arch, recipe.lora_target_modules), recipe.lora_r, arch.layers)


def _ends_alike(name: str, wanted: list[str]) -> bool:
    return any(name == one or name.endswith(f".{one}") or one.endswith(f".{name}") for one in wanted)


def _matches(pattern: str, name: str) -> bool:
    """Return whether a pattern over full names matches this name, with one of the usual prefixes."""
    try:
        compiled = re.compile(pattern)
    except re.error:  # PEFT will report it when the run starts; until then nothing is adapted
        return False
    return any(compiled.fullmatch(prefix + name) for prefix in _PREFIXES)
