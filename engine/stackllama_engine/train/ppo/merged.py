"""An adapter inside the weights for as long as something is sampled.

One matrix product a layer and token instead of three. Only where a weight is float32: a narrower one would round the
adapter away, and what is sampled would not be the policy. Afterwards each weight is the very parameter that it was
before; nothing is subtracted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import layer as lora
from torch import nn


@contextmanager
def merged(model: PeftModel, adapter: str) -> Iterator[bool]:
    """Inside, the base's weights hold the adapter, which must then be off; yields whether they do.

    A model with anything else than plain LoRA on float32 matrices is left as it is. Takes the memory of the weights
    that the adapter changes. Each adapted layer gets a parameter of its own: one that other modules use as well (a head
    tied to the embeddings) must stay what it is for them.
    """
    adapted = _plain_layers(model, adapter)
    layers = [layer.get_base_layer() for layer in adapted]
    kept = [layer.weight for layer in layers]
    try:
        with torch.no_grad():
            for base, weight, layer in zip(layers, kept, adapted, strict=True):
                base.weight = nn.Parameter(weight + layer.get_delta_weight(adapter), requires_grad=False)
        yield bool(layers)
    finally:
        for base, weight in zip(layers, kept, strict=True):
            base.weight = weight


def _plain_layers(model: PeftModel, adapter: str) -> list[Any]:
    """Layers that the adapter changes; none where one of them cannot be merged."""
    found = [module for module in model.modules() if isinstance(module, lora.LoraLayer) and adapter in module.r]
    return found if all(_is_plain(layer, adapter) for layer in found) else []


def _is_plain(layer: Any, adapter: str) -> bool:
    base = layer.get_base_layer()
    special = adapter in layer.lora_variant or layer.lora_bias.get(adapter, False)
    return type(layer) is lora.Linear and type(base) is nn.Linear and base.weight.dtype == torch.float32 and not special
