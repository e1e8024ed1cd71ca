"""Packed rows without a mask: attention is told where documents begin, and computes nothing across them.

The mask that keeps documents apart costs torch its flash kernel: every layer reads a whole ``[B, 1, L, L]`` mask,
repeats keys and values over their groups, and computes the products of one document with another to hide them.
``torch.nn.attention.varlen`` takes cumulative lengths instead. It is FlashAttention on CUDA, in 16 bits; on a CPU each
document is a call of its own. What fits neither keeps its mask.

Shapes: ``B`` rows of ``L`` tokens, ``T = B · L``; ``N`` documents; ``H`` heads, ``K`` heads of keys, ``D`` their width.
"""

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..contract.attention import WIDEST_HEAD
from .left_out import left_out

_LAYERS = {"full_attention", "sliding_attention"}
_DROPOUT = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
_ARGUMENT = "packed_documents"
"""Keyword that carries :class:`Documents` from the trunk to each layer's attention."""


class Documents(NamedTuple):
    """Where the documents of a batch begin, its rows laid end to end."""

    bounds: Tensor
    """int32 ``[N + 1]`` on the device: the first token of each document, and ``T``."""
    lengths: list[int]
    """``N``, on the host."""


def fits(config: Any, longest: int) -> bool:
    """Return whether a model's attention can do with the bounds of documents, by its configuration.

    Args:
        config: of the language model.
        longest: tokens per row; a sliding window as long hides nothing in it.
    """
    if not _LAYERS.issuperset(getattr(config, "layer_types", None) or ()):
        return False
    window = getattr(config, "sliding_window", None)
    heads = getattr(config, "num_attention_heads", None) or 1
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    dropout = any(getattr(config, name, None) for name in _DROPOUT)
    # torch pads other widths than multiples of 8 for its flash kernel elsewhere, and not here
    return not dropout and width <= WIDEST_HEAD and width % 8 == 0 and (window is None or longest < window)


def takes_bounds(model: Any, longest: int, *, bf16: bool) -> bool:
    """Return whether CUDA's kernel can read packed rows of a model without a mask.

    Args:
        model: with its configuration.
        longest: tokens per row.
        bf16: whether it runs under 16-bit autocast.
    """
    config = model.config.get_text_config()
    narrow = bf16 or model.dtype in (torch.bfloat16, torch.float16)
    return narrow and config._attn_implementation == "sdpa" and fits(config, longest) and not left_out("varlen")


def leaves_masks_out(model: Any, device: torch.device, longest: int, *, bf16: bool) -> bool:
    """Return whether packed rows of a model are to be read without a mask on this device; see :func:`takes_bounds`."""
    if device.type == "cpu":  # in any dtype
        return takes_bounds(model, longest, bf16=True)
    return device.type == "cuda" and takes_bounds(model, longest, bf16=bf16) and _exists(device)


def keep_apart(model: Any) -> RemovableHandle:
    """Let a model's trunk tell attention where documents begin, and make no masks for packed rows.

    Returns:
        what takes it back.
    """
    ALL_ATTENTION_FUNCTIONS["sdpa"] = attention
    return model.get_decoder().register_forward_pre_hook(_with_documents, with_kwargs=True)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    packed_documents: Documents | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Compute transformers' ``sdpa``; packed documents, where they are given, each by itself.

    Args:
        module: a layer's attention.
        query: ``[B, H, L, D]``.
        key: ``[B, K, L, D]``.
        value: ``[B, K, L, D]``.
        attention_mask: of rows that are not packed.
        dropout: not with documents.
        scaling: of the scores.
        is_causal: None: as the module says.
        position_bias: not with documents.
        packed_documents: of all rows, one after another.
        more: transformers' own.

    Returns:
        ``[B, L, H, D]``.

    Raises:
        ValueError: attention that documents alone do not describe.
    """
    if packed_documents is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, position_bias, **more
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is not None or position_bias is not None or dropout or not causal:
        raise ValueError(f"{type(module).__name__} does more than causal attention; packed rows need its masks.")
    if key.shape[-1] != query.shape[-1] or value.shape[-1] != query.shape[-1]:
        raise ValueError(f"{type(module).__name__} has heads of several widths; packed rows need masks.")
    rows = query.shape[0]
    flat = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))  # [T, H or K, D], mostly views
    attend = by_varlen if query.device.type == "cuda" else by_document
    return attend(*flat, documents=packed_documents, scale=scaling).unflatten(0, (rows, -1)), None


def by_varlen(query: Tensor, key: Tensor, value: Tensor, *, documents: Documents, scale: float | None) -> Tensor:
    """Attend within documents by FlashAttention: ``[T, H, D]``; it is not among the functions that autocast casts."""
    from torch.nn.attention.varlen import varlen_attn

    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    longest = max(documents.lengths)
    output = varlen_attn(
        query,
        key,
        value,
        documents.bounds,
        documents.bounds,
        longest,
        longest,
        scale=scale,
        window_size=(-1, 0),  # causal
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)
    return output


def by_document(query: Tensor, key: Tensor, value: Tensor, *, documents: Documents, scale: float | None) -> Tensor:
    """Attend within documents, one after another, by torch's own function on any device: ``[T, H, D]``."""
    parts = zip(*(states.split(documents.lengths) for states in (query, key, value)), strict=True)
    grouped = query.shape[1] != key.shape[1]
    outputs = [
        nn.functional.scaled_dot_product_attention(
            *(part.transpose(0, 1).unsqueeze(0) for part in one), is_causal=True, scale=scale, enable_gqa=grouped
        )
        for one in parts
    ]
    return torch.cat(outputs, dim=2)[0].transpose(0, 1)  # [1, H, T, D] before


def documents_of(positions: Tensor) -> Documents | None:
    """Find the documents of rows by their positions ``[B, L]``, which begin at 0; None: one per row.

    On a GPU the host waits for the positions, as it does where transformers looks for packed rows.
    """
    starts = (positions.flatten() == 0).nonzero().flatten()  # [N]
    if len(starts) == len(positions):
        return None
    bounds = torch.nn.functional.pad(starts, (0, 1), value=positions.numel())  # [N + 1]
    return Documents(bounds.int(), bounds.diff().tolist())


def _with_documents(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    ids, positions = kwargs.get("input_ids"), kwargs.get("position_ids")
    if ids is None or positions is None or positions.shape != ids.shape:
        return args, kwargs
    if kwargs.get("attention_mask") is not None or kwargs.get("past_key_values") is not None:
        return args, kwargs
    documents = documents_of(positions)
    if documents is None:
        return args, kwargs
    # of a mask that hides nothing transformers makes none, and looks for no documents
    return args, kwargs | {"attention_mask": torch.ones_like(positions), _ARGUMENT: documents}


def _exists(device: torch.device) -> bool:
    """Return whether this torch has attention by cumulative lengths with grouped heads, and the card its kernel."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch before 2.10
        return False
    grouped = "enable_gqa" in inspect.signature(varlen_attn).parameters
    return grouped and torch.cuda.get_device_capability(device) >= (8, 0)
