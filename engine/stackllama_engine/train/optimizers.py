"""The optimizer that a recipe names, where no Trainer builds it, and its state as plain tensors and numbers.

The classes and arguments are those of transformers' Trainer (``trainer_optimizer.py``), so that a name means the same
in every stage.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Adafactor

from ..contract.recipe import TrainRecipe

if TYPE_CHECKING:
    from torch.optim import Optimizer

Numbers = dict[str, int | float]


def build(recipe: TrainRecipe, parameters: Sequence[nn.Parameter] | list[dict[str, Any]]) -> "Optimizer":
    """Build the optimizer of ``recipe.optim`` over parameters, or groups of them that may have their own ``lr``."""
    plain: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optim == "adafactor":
        return Adafactor(parameters, **plain, scale_parameter=False, relative_step=False)
    adam = plain | {"betas": (recipe.adam_beta1, recipe.adam_beta2), "eps": recipe.adam_epsilon}
    if recipe.optim in ("adamw_torch", "adamw_torch_fused"):
        return torch.optim.AdamW(parameters, **adam, fused=True if recipe.optim == "adamw_torch_fused" else None)
    from bitsandbytes.optim.adamw import AdamW  # not every installation has it

    paged = recipe.optim.startswith("paged")
    return AdamW(parameters, **adam, optim_bits=8 if "8bit" in recipe.optim else 32, is_paged=paged)


def state_of(optimizer: "Optimizer") -> tuple[dict[str, Tensor], Numbers]:
    """Return an optimizer's whole state under ``index.name``: tensors, and plain numbers.

    The tensors are the optimizer's own: what has to outlive its next step is to be copied. bitsandbytes' maps from a
    byte to a number are left out: they are the same in every run, and shared by all tensors.
    """
    tensors: dict[str, Tensor] = {}
    numbers: Numbers = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state[parameter].items():
            if not isinstance(value, Tensor):
                numbers[f"{index}.{name}"] = value
            elif not name.startswith("qmap"):
                tensors[f"{index}.{name}"] = value.detach()
    return tensors, numbers


def restore(optimizer: "Optimizer", tensors: dict[str, Tensor], numbers: Numbers) -> None:
    """Restore what :func:`state_of` returned; the optimizer must not have made a step yet."""
    parameters = _parameters(optimizer)
    make: Any = getattr(optimizer, "init_state", None)
    if make is not None:  # bitsandbytes: its own buffers, which may be paged, and its maps
        for group_index, group in enumerate(optimizer.param_groups):
            for index, parameter in enumerate(group["params"]):
                make(group, parameter, group_index, index)
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        state = optimizer.state[parameter]
        if name in state:
            state[name].copy_(value)
        elif name == "step" and not optimizer.defaults.get("fused"):
            state[name] = value.cpu()  # AdamW counts steps on the CPU, wherever the parameter is, unless it is fused
        else:
            state[name] = value.to(parameter.device)
    for key, value in numbers.items():
        index, name = key.split(".", 1)
        optimizer.state[parameters[int(index)]][name] = value


def _parameters(optimizer: "Optimizer") -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
