"""An adapter's float32 matrices in bfloat16 for as long as autocast would make the same of them at every token."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import layer as lora
from torch import nn

_QUANTISED = ("Linear8bitLt", "Linear4bit")
"""PEFT's layers over bitsandbytes, which is not there on every machine."""


@contextmanager
def narrowed(model: PeftModel, adapter: str) -> Iterator[None]:
    """Hold the adapter's float32 matrices in bfloat16; for use under bfloat16 autocast, where results stay bit-equal.

    Autocast rounds a float32 matrix and its input at every product; here the matrix is rounded once, and the input is
    never widened before. Afterwards each weight is the very parameter that it was before.

    Args:
        model: left as it is where it has no such adapter, or one that is more than plain LoRA.
        adapter: its name.
    """
    linears = [linear for module in model.modules() for linear in _linears(module, adapter)]
    weights = [linear.weight for linear in linears]
    try:
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight = nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
        yield
    finally:
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight = weight


def _linears(module: Any, adapter: str) -> list[nn.Linear]:
    """Return an adapted layer's two matrices, where they are plain float32 and only multiplied."""
    if not isinstance(module, lora.LoraLayer) or adapter not in module.lora_A or adapter in module.lora_variant:
        return []
    if not isinstance(module, lora.Linear) and type(module).__name__ not in _QUANTISED:
        return []
    linears: list[Any] = [part[adapter] for part in (module.lora_A, module.lora_B)]
    plain = all(type(linear) is nn.Linear and linear.weight.dtype == torch.float32 for linear in linears)
    return linears if plain else []
