# pyright: basic
"""Stand-ins for CUDA kernels: which kernels run, what they save for the backward pass, and their temporaries.

Without CUDA fake tensors must be CPU tensors, and on a CPU torch would choose other kernels. Each stand-in here
allocates what the CUDA kernel allocates and computes nothing. Sources: torch ``aten/src/ATen/native`` (dropout,
``transformers/cuda/sdp_utils.cpp``, ``flash_attn/flash_api.cpp``, ``attention_backward.cu``, ``ReduceOps.cpp``),
bitsandbytes ``backends/cuda/ops.py``, TRL ``kernels/chunked_logprob.py``.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import bitsandbytes
import torch
from bitsandbytes.autograd._functions import MatMul8bitLt, MatmulLtState
from bitsandbytes.optim.optimizer import Optimizer8bit
from torch import Tensor
from torch.nn import functional as F

from ...contract.attention import WIDEST_HEAD
from ...train import fast_lora
from ...train.ppo import head
from ..activations import FUSED_4BIT_ROWS
from ..lm_head import chunk_tokens
from ..optimizer import LEAST_PAGED

aten: Any = torch.ops.aten
bnb: Any = torch.ops.bitsandbytes

_OUTSIDE = ("_engine_run_backward",)
_WRAPPERS = ("_python_dispatch.py", "_compile.py", "eval_frame.py", "_ops.py")


def kernels() -> dict[Any, Any]:
    """Map operations that run differently on CUDA, or whose shapes depend on data, to their stand-ins."""
    return {
        aten.add.Tensor: _accumulate,
        aten.index.Tensor: _index,
        aten._index_put_impl_.default: _index_put,
        aten.index_put_.default: _index_put,
        aten.masked_select.default: _masked_select,
        bnb.int8_vectorwise_quant.default: _int8_quantise,
        bnb.int8_mixed_scaled_mm.default: _int8_matrix_product,
        bnb.gemm_4bit.default: _four_bit_product,
        bnb.dequantize_4bit.default: _four_bit_write_out,
        bnb.optimizer_update_8bit_blockwise.default: _in_place,
        bnb.optimizer_update_32bit.default: _in_place,
    }


def momentary() -> dict[Any, Any]:
    """Map operations to functions that return the bytes of a kernel's temporaries."""
    return {aten.logsumexp.default: lambda one, *_, **__: one.numel() * one.element_size()}


@contextmanager
def stand_ins(*, padded: bool) -> Iterator[None]:
    """Make attention, dropout, int8 products and TRL's head run as on CUDA, inside the context.

    Args:
        padded: whether batches contain padding, which transformers reads from the mask's values.
    """
    from transformers import masking_utils
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    def nothing(*_: Any, **__: Any) -> None:
        """Do nothing: Triton's kernels allocate no memory."""

    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    with ExitStack() as stack:
        for owner, name, stand_in in (
            (F, "scaled_dot_product_attention", attention),
            (F, "dropout", _dropout),
            (bitsandbytes, "matmul", _int8_linear),
            (Optimizer8bit, "get_state_buffer", _state_buffer),
            (Optimizer8bit, "fill_qmap", _maps),
            (chunked_logprob, "_forward_tile", nothing),
            (chunked_logprob, "_backward_tile", nothing),
            (chunked_logprob, "_addmm_fp32", nothing),
            (utils, "_use_triton", lambda _: True),
            (head, "chunk_tokens", lambda _, vocabulary: chunk_tokens(vocabulary, on_gpu=True)),
            (masking_utils, "is_tracing", lambda *_: False),
            (fast_lora, "drops_in_float32", lambda _: True),
            (masking_utils, "fast_all", lambda _: not padded),
            (masking_utils, "find_packed_sequence_indices", lambda *_: None),  # positions have no values
        ):
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        yield


def as_on_cuda(optimizer: Any) -> Any:
    """Set torch's default on CUDA: foreach, if neither foreach nor fused is set."""
    for group in optimizer.param_groups:
        if "foreach" in group and group["foreach"] is None and not group["fused"]:
            group["foreach"] = True
    return optimizer


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Run ``scaled_dot_product_attention`` with the kernel that torch chooses on CUDA.

    Flash supports 16-bit dtypes, no mask, heads up to 256 wide, grouped or not; the memory-efficient kernel supports
    any dtype and a mask, but no grouped heads; the rest are plain matrix products.
    """
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (one.to(torch.get_autocast_dtype("cpu")) for one in (query, key, value))
    narrow = query.shape[-1] <= WIDEST_HEAD
    if query.element_size() == 2 and attn_mask is None and narrow:
        return _Flash.apply(query, key, value)
    grouped = enable_gqa and query.shape[1] != key.shape[1]
    if not grouped:
        bias = None
        if attn_mask is not None:
            bias = _bias(attn_mask, query)
        return _Efficient.apply(query, key, value, bias)
    return aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]


class _Flash(torch.autograd.Function):
    """FlashAttention 2: saves queries, keys, values, output and one float32 per row.

    Its backward pass sums the queries' gradients in float32, and computes the gradients of grouped keys and values per
    head before it sums them.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, length, width = query.shape
        out = query.new_empty(batch, length, heads, width).transpose(1, 2)
        rows = query.new_empty(batch, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, _, _ = ctx.saved_tensors
        batch, heads, length, width = query.shape
        tall = -(-length // 128) * 128
        sums = query.new_empty(batch, heads, tall, dtype=torch.float32)
        added = query.new_empty(batch, tall, heads, -(-width // 32) * 32, dtype=torch.float32)
        gradients_in = [_like(one) for one in (query, key, value)]
        if heads != key.shape[1]:
            expanded = [query.new_empty(batch, key.shape[2], heads, width) for _ in range(2)]
            del expanded
        del sums, added
        return tuple(gradients_in)


class _Efficient(torch.autograd.Function):
    """Memory-efficient kernel: also saves the mask; sums 16-bit gradients of the queries in a float32 workspace."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        batch, heads, length, width = query.shape
        out = query.new_empty(batch, length, heads, width).transpose(1, 2)
        rows = query.new_empty(batch, heads, -(-length // 32) * 32, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, bias, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, _, _, _ = ctx.saved_tensors
        batch, heads, length, width = query.shape
        delta = query.new_empty(batch, heads, length, dtype=torch.float32)
        gradients_in = [_like(one) for one in (query, key, value)]
        if query.element_size() == 2:
            workspace = query.new_empty(batch, heads, length, width, dtype=torch.float32)
            del workspace
        del delta
        return (*gradients_in, None)


def _like(one: Tensor) -> Tensor:
    """Allocate a gradient in the layout ``[B, S, H, D]``, viewed as ``[B, H, S, D]``."""
    batch, heads, length, width = one.shape
    return one.new_empty(batch, length, heads, width).transpose(1, 2)


def _bias(mask: Tensor, query: Tensor) -> Tensor:
    """Convert a mask to an additive one, its rows padded to the alignment of the kernel."""
    bias = mask
    if mask.dtype == torch.bool:
        bias = torch.where(mask, query.new_zeros(()), query.new_full((), float("-inf")))
    else:
        bias = bias.to(query.dtype)
    align = 16 // query.element_size()
    short = -bias.shape[-1] % align
    return F.pad(bias, (0, short))[..., : mask.shape[-1]] if short else bias


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Save a bool mask as on CUDA; a CPU saves a mask of the input's dtype."""
    if not training or p == 0:
        return input
    return torch.native_dropout(input, p, training)[0]


def _int8_linear(
    A: Tensor, B: Tensor, out: Any = None, state: Any = None, threshold: float = 0.0, bias: Any = None
) -> Any:
    state = state or MatmulLtState()
    if threshold > 0.0:
        state.threshold = threshold
    return MatMul8bitLt.apply(A, B, out, bias, state)


def _int8_quantise(A: Tensor, threshold: float = 0.0) -> Any:
    """Quantise without outliers: their columns are unknown without weights, and they are few."""
    rows = A.new_empty(A.numel() // A.shape[-1], dtype=torch.float32)
    out = A.new_empty(A.shape, dtype=torch.int8)
    columns = None
    if threshold > 0.0:
        outliers = A.abs() >= threshold
        del outliers
        columns = A.new_empty(0, dtype=torch.int64)
    return out, rows, columns


def _int8_matrix_product(
    A: Tensor, CA: Tensor, CB: Tensor, SCA: Tensor, SCB: Tensor, outlier_cols: Any = None, bias: Any = None
) -> Any:
    product = CA.new_empty(*CA.shape[:-1], CB.shape[0], dtype=torch.int32)
    half = product.new_empty(product.shape, dtype=torch.float16)
    return half.to(A.dtype), A.new_empty(0)


def _four_bit_product(
    A: Tensor,
    B: Tensor,
    shapeB: Any,
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
    bias: Any = None,
    absmax_8bit: Any = None,
    absmax_code: Any = None,
    absmax_offset: Any = None,
) -> Any:
    if A.numel() // A.shape[-1] <= FUSED_4BIT_ROWS:
        return A.new_empty(*A.shape[:-1], shapeB[0])
    if absmax_8bit is not None:
        scales = A.new_empty(absmax_8bit.shape, dtype=torch.float32)
        absmax = scales + absmax_offset  # both exist until the product is computed
    return F.linear(A, _four_bit_write_out(B, absmax, blocksize, quant_type, shapeB, A.dtype), bias)


def _four_bit_write_out(
    A: Tensor, absmax: Tensor, blocksize: int, quant_type: str, shape: Any, dtype: torch.dtype
) -> Tensor:
    return A.new_empty(*shape, dtype=dtype)


def _accumulate(one: Tensor, other: Any, **more: Any) -> Any:
    """Add gradients of one tensor in place, as autograd does (``input_buffer.cpp``) except for tensor subclasses.

    Fake tensors are such a subclass. Autograd's own additions have no Python frame between them and the engine's call.
    """
    if torch._C._current_graph_task_id() == -1 or more or not isinstance(other, Tensor):
        return NotImplemented
    if (one.shape, one.dtype) != (other.shape, other.dtype) or not _from_engine(sys._getframe()):
        return NotImplemented
    return one.add_(other)


def _from_engine(frame: Any) -> bool:
    while frame is not None and frame.f_globals.get("__package__") == __package__:
        frame = frame.f_back
    while frame is not None and frame.f_code.co_name not in _OUTSIDE:
        if not frame.f_code.co_filename.endswith(_WRAPPERS):
            return False
        frame = frame.f_back
    return frame is not None


def _index(one: Tensor, indices: Any) -> Any:
    """Select all rows of a mask, which is the longest batch."""
    if len(indices) == 1 and indices[0] is not None and indices[0].dtype == torch.bool:
        mask = indices[0]
        positions = mask.new_empty(mask.dim(), mask.numel(), dtype=torch.int64)
        out = one.new_empty(mask.numel(), *one.shape[mask.dim() :])
        del positions
        return out
    return NotImplemented


def _index_put(one: Tensor, indices: Any, values: Tensor, *more: Any) -> Any:
    if not any(index is not None and index.dtype == torch.bool for index in indices):
        return NotImplemented
    positions = [at.new_empty(at.dim(), at.numel(), dtype=torch.int64) for at in indices if at is not None]
    del positions
    return one


def _masked_select(one: Tensor, mask: Tensor) -> Tensor:
    return one.new_empty(mask.numel())


def _in_place(*_: Any, **__: Any) -> None:
    """Do nothing: bitsandbytes' optimizers update states and parameters in place."""


def _state_buffer(self: Optimizer8bit, parameter: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Allocate a state beside the parameter; managed memory, which is not the GPU's own, is not counted."""
    if self.is_paged and parameter.numel() >= LEAST_PAGED:
        return parameter.new_empty(0, dtype=dtype)
    return torch.zeros_like(parameter, dtype=dtype)


def _maps(self: Optimizer8bit) -> None:
    """Allocate maps of the sizes that bitsandbytes computes from values."""
    self.name2qmap = {"dynamic": torch.empty(256), "udynamic": torch.empty(256)}
