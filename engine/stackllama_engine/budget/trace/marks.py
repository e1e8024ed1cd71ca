# pyright: basic
"""Boundaries between the phases of a step: at the hidden states between layers, forward and backward.

A checkpointed layer runs inside its own graph, so every mark is on a layer's input, which both graphs have.
"""

from typing import Any

from torch import Tensor, nn

from .storages import Storages

FORWARD = "forward"
LOSS = "loss"
LAST = "last layer's backward"
INNER = "inner layers' backward"
FIRST = "first layer's backward"
EMBEDDING = "embedding's backward"
STEP = "optimizer step"


def mark_layers(model: Any, storages: Storages) -> None:
    """Enter a phase when the last layer has run, and whenever the gradient of a layer's output is computed.

    Args:
        model: a language model, with or without adapters.
        storages: records the phases.
    """
    layers, norm = _parts(model)
    for index, layer in enumerate(layers):
        before = {0: EMBEDDING, 1: FIRST}.get(index, INNER)
        layer.register_forward_pre_hook(_on_input(storages, before), with_kwargs=True)
    norm.register_forward_pre_hook(_on_input(storages, LAST, now=LOSS), with_kwargs=True)


def _on_input(storages: Storages, later: str, now: str | None = None) -> Any:
    def before(module: nn.Module, inputs: Any, named: Any) -> None:
        hidden = inputs[0] if inputs else named.get("hidden_states")
        if isinstance(hidden, Tensor) and hidden.requires_grad:
            hidden.register_hook(lambda _: storages.enter_phase(later))
            if now:
                storages.enter_phase(now)

    return before


def _parts(model: Any) -> tuple[nn.ModuleList, nn.Module]:
    """Return the layers of a language model, and the final norm.

    Raises:
        ValueError: the model has other names for them.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    trunk = inner.base_model
    layers = _first(trunk, ("layers", "h"), nn.ModuleList)
    norm = _first(trunk, ("norm", "final_layernorm", "final_layer_norm", "ln_f"), nn.Module)
    if layers is None or norm is None:
        raise ValueError(f"{type(trunk).__name__} is not supported: its layers or its final norm were not found.")
    return layers, norm


def _first(trunk: Any, names: tuple[str, ...], kind: type) -> Any:
    return next((one for name in names if isinstance(one := getattr(trunk, name, None), kind)), None)
