"""Names of the modules of a known architecture, as PEFT sees them, and which of them a recipe's LoRA targets take."""

import re

from ..budget.adapter import FUSED
from ..budget.architecture import Architecture
from ..contract.recipe_common import ALL_LINEAR
from ..contract.stages import Stage

_BODY = {"gpt2": "transformer.h", "neox": "gpt_neox.layers"}
_ATTENTION = {"gpt2": "attn", "neox": "attention"}
_EMBEDDINGS = {"gpt2": ("transformer.wte", "transformer.wpe"), "neox": ("gpt_neox.embed_in",)}
HEADS = frozenset({"lm_head", "embed_out"})
TIED = HEADS | {"embed_tokens", "wte", "embed_in"}
"""Last names of the head and of the embedding that it may be."""


def module_names(arch: Architecture, stage: Stage) -> list[str]:
    """Return full names of the modules that LoRA may adapt, of all layers; a reward model has no LM head."""
    body = _BODY.get(arch.family, "model.layers")
    inside: list[str] = []
    for linear in arch.linears:
        part = _ATTENTION.get(arch.family, "self_attn") if linear.source in ("attn", "out") else "mlp"
        inside.append(f"{part}.{linear.name.rpartition('.')[2]}")
    if arch.expert:
        inside += [f"mlp.{name}" for name in FUSED]
    names = [f"{body}.{layer}.{name}" for layer in range(arch.layers) for name in inside]
    head = "score" if stage is Stage.REWARD else "lm_head"
    return [*_EMBEDDINGS.get(arch.family, ("model.embed_tokens",)), *names, head]


def short_names(arch: Architecture) -> list[str]:
    """Return the names that a recipe would use for the matrices inside layers."""
    return list(dict.fromkeys(linear.name for linear in arch.adaptable))


def takes(target: str, names: list[str]) -> list[str]:
    """Return the modules that one entry of a list selects: by name, or by the end of it."""
    return [name for name in names if name == target or name.endswith(f".{target}")]


def taken(targets: list[str] | str, names: list[str]) -> list[str]:
    """Return the modules that ``lora_target_modules`` selects, as PEFT matches them.

    Raises:
        re.error: a text that is no pattern.
    """
    if targets == ALL_LINEAR:  # PEFT leaves embeddings and head out
        return [name for name in names if name.rpartition(".")[2] not in TIED]
    if isinstance(targets, str):
        pattern = re.compile(targets)
        return [name for name in names if pattern.fullmatch(name)]
    return [name for target in targets for name in takes(target, names)]
