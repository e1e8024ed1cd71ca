"""A pass through the upper layers of a trunk alone, on hidden states kept from an earlier pass through the lower ones.

The trunk's own forward pass runs, so that masks, rotary embeddings and the final norm are the model's; only layers are
replaced by ones that pass states on. Whether a family of models agrees to that is measured at load
(:mod:`.model_checks`).

Shapes: ``b`` sequences, ``T`` tokens, ``H`` hidden width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.lora import layer as lora
from torch import Tensor, nn

from ...contract.errors import StageError


def layers_of(trunk: nn.Module, count: int) -> nn.ModuleList | None:
    """Return the list of a trunk's ``count`` layers; None: it has no such list, or several."""
    found = [one for one in trunk.children() if isinstance(one, nn.ModuleList) and len(one) == count]
    return found[0] if len(found) == 1 else None


def lowest_adapted(layers: nn.ModuleList, adapter: str) -> int:
    """Return the index of the lowest layer that an adapter changes; their number where it changes none."""
    found = (
        index
        for index, layer in enumerate(layers)
        if any(isinstance(part, lora.LoraLayer) and adapter in part.r for part in layer.modules())
    )
    return next(found, len(layers))


def cut_adapter(model: PeftModel, layers: nn.ModuleList, below: int, adapter: str) -> None:
    """Remove an adapter, which must not be active, from all but the layers above the ``below`` lowest.

    Its configuration then names the matrices that are left, so that it is saved and loaded as what it is.

    Raises:
        StageError: it changes none of them.
    """
    upper = {id(part) for layer in layers[below:] for part in layer.modules()}
    kept: set[str] = set()
    for name, part in model.get_base_model().named_modules():
        if not isinstance(part, lora.LoraLayer) or adapter not in part.r:
            continue
        if id(part) in upper:
            kept.add(name)
        else:
            part.delete_adapter(adapter)
    if not kept:
        raise StageError(
            f"`value_adapter_layers`: LoRA changes none of the {len(layers) - below} upper layers, so that the critic "
            "has no adapter there; use more of them, or other `lora_target_modules`."
        )
    config: Any = model.peft_config[adapter]
    config.target_modules = kept


@contextmanager
def keeping(layers: nn.ModuleList, below: int, keep: Callable[[Tensor], None]) -> Iterator[None]:
    """Hand over the output of the lowest ``below`` layers, ``[b, T, H]``, in every forward pass inside."""

    def before(_: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        keep(inputs[0] if inputs else named["hidden_states"])

    handle = layers[below].register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def without_upper(layers: nn.ModuleList, below: int) -> Iterator[None]:
    """Run the lowest ``below`` layers alone; what the trunk returns means nothing."""
    with _replaced(layers, {index: _Passes() for index in range(below, len(layers))}):
        yield


@contextmanager
def without_lower(layers: nn.ModuleList, below: int, states: Tensor) -> Iterator[None]:
    """Run the other layers alone, on these states, ``[b, T, H]``, in place of the output of the lowest ``below``."""
    substitutes = {index: _Passes() for index in range(below - 1)}
    with _replaced(layers, {**substitutes, below - 1: _Passes(states)}):
        yield


class _Passes(nn.Module):
    """A layer that returns its input, or other states."""

    def __init__(self, states: Tensor | None = None) -> None:
        super().__init__()
        self._states = states

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states if self._states is None else self._states


@contextmanager
def _replaced(layers: nn.ModuleList, substitutes: dict[int, _Passes]) -> Iterator[None]:
    """Put other layers into the list; those that a trunk counts keep their places."""
    own = {index: layers[index] for index in substitutes}
    try:
        for index, substitute in substitutes.items():
            layers[index] = substitute
        yield
    finally:
        for index, layer in own.items():
            layers[index] = layer
