"""Padding that follows a row needs no mask where attention is causal: no token sees what comes after it.

With a mask torch leaves its flash kernel for one that reads the whole ``T × T`` square, keys and values repeated over
their groups. So PPO's passes and the batches of SFT and reward training, which are all padded on the right, go without
one. A model whose attention looks ahead (an encoder's) is found by measuring it, and keeps its masks.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from .faults import memory_that_ran_out
from .left_out import left_out

MOST_SEEN = 0.01
"""Largest share of the change that tokens undergo when the one before them is another, when padding is another. A
causal model's is 0, or rounding where a matrix is multiplied in 8 bits."""
_ROW, _PADDING = 8, 4  # tokens that are measured


def keeps_mask(model: Any, device: torch.device, *, bf16: bool) -> bool:
    """Return whether a mask is worth its cost even where it hides nothing.

    In 32 bits torch has a kernel for grouped heads on a GPU only if they are repeated, which transformers does for a
    mask; without one it would write out the scores.

    Args:
        model: with its configuration.
        device: where it runs.
        bf16: whether it runs under 16-bit autocast.
    """
    if left_out("pack"):
        return True
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    grouped = getattr(config, "num_key_value_heads", None) not in (None, heads)
    return device.type != "cpu" and grouped and not bf16 and model.dtype == torch.float32


def needs_none(model: Any, device: torch.device, autocast: AbstractContextManager[Any], *, bf16: bool) -> bool:
    """Return whether rows padded on the right are read the same, and faster, without a mask.

    Args:
        model: with or without adapters.
        device: where it runs.
        autocast: the context of its forward passes.
        bf16: whether that is one of 16 bits.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if keeps_mask(base, device, bf16=bf16):
        return False
    try:
        with autocast, torch.no_grad():
            return padding_seen(base.get_decoder(), device) <= MOST_SEEN
    except Exception as error:  # a trunk that needs more than token ids, or returns no hidden states
        if memory_that_ran_out(error) is not None:
            raise
        return False


def drop_masks(model: Any, device: torch.device, autocast: AbstractContextManager[Any], *, bf16: bool) -> None:
    """Keep the masks of rows padded on the right from a model's trunk where it needs none; see :func:`needs_none`.

    Not for a model that also samples, whose prompts are padded on the left.
    """
    if needs_none(model, device, autocast, bf16=bf16):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.get_decoder().register_forward_pre_hook(_without_mask, with_kwargs=True)


def padding_seen(trunk: nn.Module, device: torch.device) -> float:
    """Measure how much other padding changes a row's states after its first token, relative to another first token.

    The first token's own state is left out: it holds its embedding, beside which nothing that attention adds is large.
    """
    was_training = trunk.training
    trunk.eval()
    try:
        row = list(range(_ROW))
        states = [
            _states(trunk, device, ids)
            for ids in (row + [0] * _PADDING, row + [1] * _PADDING, [1, *row[1:]] + [0] * _PADDING)
        ]
    finally:
        trunk.train(was_training)
    padding, token = ((states[0] - other).abs().mean() for other in states[1:])
    return float(padding / token) if token else float(padding > 0)


def _states(trunk: nn.Module, device: torch.device, ids: list[int]) -> Tensor:
    tokens, positions = torch.tensor([ids], device=device), torch.arange(len(ids), device=device).unsqueeze(0)
    output = trunk(input_ids=tokens, position_ids=positions, use_cache=False)
    return output.last_hidden_state[0, 1:_ROW].float()


def _without_mask(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:  # others are prebuilt, and hide more than padding
        kwargs = kwargs | {"attention_mask": None}
    return args, kwargs
