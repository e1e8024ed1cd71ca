"""Activation memory: bytes per token that one layer saves for the backward pass, and that pass's temporaries.

Every function returns bytes per token, unless it says otherwise. h hidden, q = heads · head_dim, kv = kv_heads ·
head_dim, I intermediate, S tokens per sequence. What each operation saves follows from its derivative (torch,
``derivatives.yaml``) and from how transformers' modelling files compose them; PyTorch's ``saved tensors`` tutorial
explains the principle.
"""

from typing import Literal

from msgspec import Struct

from .architecture import Architecture, Linear
from .precision import Precision

Attention = Literal["flash", "efficient", "math", "eager"]
LAYER_NORMS = ("phi", "neox", "gpt2")
FUSED_4BIT_ROWS = 64
"""Rows up to which bitsandbytes multiplies 4-bit matrices without dequantising them; depends on card and shape."""


class LayerMode(Struct, frozen=True, kw_only=True):
    """Settings with which a layer runs."""

    precision: Precision
    full: bool = False
    """All weights are trained."""
    targets: tuple[Linear, ...] = ()
    rank: int = 0
    dropout: bool = False
    dropout_mask: int = 1
    """Bytes per element of dropout's mask: bool on a GPU, float32 on a CPU."""
    adapter: int = 4
    """Bytes per element of an adapter."""
    fused: bool = False
    """Adapters run in ``train/fast_lora.py``: inputs keep their width, and the sum is part of the second product."""
    attention: Attention = "flash"
    masked: bool = False
    """Padded sequences: the kernel gets a mask, and keys and values repeated over groups."""
    length: int = 1
    """Tokens per sequence."""


def norms(arch: Architecture, mode: LayerMode) -> int:
    """Return what the norms save: an RMS norm its float32 copy and one factor, a layer norm its input."""
    h, compute = arch.hidden, _stream(mode)
    if arch.family in LAYER_NORMS:
        count = 2 if arch.family == "gpt2" else 1  # in the others attention and MLP read one tensor
        return count * mode.precision.residual * h + 16
    count = 4 if arch.norms >= 4 * h else 2
    normalised = compute * h if mode.full else 0  # the normalised input, for the weight's gradient
    total = count * (4 * h + 4 + normalised)
    if arch.qk_norm:
        total += 4 * (arch.q + arch.kv) + 4 * (arch.heads + arch.kv_heads)
        total += mode.precision.compute * (arch.q + arch.kv) if mode.full else 0
    return total


def attention(arch: Architecture, mode: LayerMode) -> int:
    """Return what attention saves: queries, keys, values and output, and the kernel's part of the S × S scores."""
    a, q, length = mode.precision.attention, arch.q, mode.length
    kv = q if mode.masked or mode.attention in ("math", "eager") else arch.kv
    saved = a * (2 * q + 2 * kv)
    if arch.family == "neox":  # values are a view of the fused product, which also holds unrotated queries and keys
        saved += 2 * a * q
    match mode.attention:
        case "flash":
            return saved + 4 * arch.heads
        case "efficient":
            return saved + 4 * arch.heads + (a * length if mode.masked else 0)
        case "math":  # only the readers of the output save it
            is_saved = mode.full or mode.precision.quant == "int8" or _adapted(mode, "out")
            return saved - (0 if is_saved else a * q) + a * arch.heads * length
        case "eager":  # softmax in float32, and its copy in the dtype of the values; Gemma 2 caps the scores
            capped = a if arch.model_type == "gemma2" else 0
            return saved + (4 + (a if a < 4 else 0) + capped) * arch.heads * length


def mlp(arch: Architecture, mode: LayerMode) -> int:
    """Return what the MLP saves: gate, its activation and up if it is gated, else the activation's input."""
    width = mode.precision.compute * arch.intermediate * arch.experts_used
    if arch.gated:
        return 3 * width
    return 4 * width if arch.activation == "gelu_new" else width


def linear_inputs(arch: Architecture, mode: LayerMode) -> int:
    """Return the saved inputs of the matrices, for their own gradients or by bitsandbytes' int8 (which always does).

    Modules that read the same tensor share it. Under autocast a float32 input is cast anew for each of them.
    """
    c, stream = mode.precision.compute, _stream(mode)
    if mode.full:
        cast = mode.precision.amp and mode.precision.residual == 4
        readers = {source: sum(one.source == source for one in arch.linears) for source in ("attn", "mlp")}
        norm_outputs = sum(2 * arch.hidden * readers[s] if cast else stream * arch.hidden for s in ("attn", "mlp"))
        return norm_outputs + c * arch.intermediate * arch.experts_used
    if mode.precision.quant == "int8":
        return 2 * stream * arch.hidden + c * arch.intermediate * arch.experts_used
    return 0


def lora(arch: Architecture, mode: LayerMode) -> int:
    """Return what LoRA saves: inputs of A and B on every target, and dropout's mask."""
    amp, total = mode.precision.amp, 0
    shared: set[str] = set()
    for target in mode.targets:
        used = arch.experts_used if target.count > 1 else 1
        wide = 2 if amp else mode.adapter
        inner = wide * mode.rank
        if mode.dropout:
            total += used * ((mode.dropout_mask + wide) * target.inputs + inner)
            continue
        if mode.fused:
            total += used * inner
            given = _input_width(mode, target.source)
            if wide != given:  # cast for this target alone
                total += used * wide * target.inputs
            elif target.source != "out" and target.source not in shared:
                shared.add(target.source)
                total += used * wide * target.inputs
            continue
        saved_by_int8 = mode.precision.quant == "int8" and not amp
        same_tensor = wide == mode.precision.compute and not amp
        if same_tensor and (saved_by_int8 or target.source in shared or target.source == "out"):
            total += used * inner
            continue
        shared.add(target.source)
        total += used * (wide * target.inputs + inner)
    return total


def layer(arch: Architecture, mode: LayerMode) -> int:
    """Return everything that one layer saves."""
    parts = (norms, attention, mlp, linear_inputs, lora)
    return sum(part(arch, mode) for part in parts)


def spared(arch: Architecture, mode: LayerMode) -> int:
    """Return what the first layer need not save if nothing before it is trained.

    Its first norm, and its input on the way to matrices and adapters, have no gradient to pass on.
    """
    if mode.full:
        return 0
    h, stream = arch.hidden, _stream(mode)
    first = stream * h + 8 if arch.family in LAYER_NORMS else 4 * h + 4
    masks = sum(mode.dropout_mask * one.inputs for one in mode.targets if one.source == "attn") if mode.dropout else 0
    kept_for_int8 = stream * h if mode.precision.quant == "int8" and mode.dropout else 0
    return first + masks + kept_for_int8


def norm_backward(arch: Architecture, mode: LayerMode) -> int:
    """Return the peak of the backward pass of one norm, the residual stream's gradient included.

    An RMS norm's consists of five float32 products, a layer norm's is one kernel.
    """
    stream = _stream(mode) * arch.hidden
    return 2 * stream if arch.family in LAYER_NORMS else 5 * 4 * arch.hidden + stream


def backward_transient(arch: Architecture, mode: LayerMode, tokens: int) -> int:
    """Return the peak of a layer's backward pass besides what was saved, in bytes: the residual stream's gradient and

    - at the product of the MLP's gate and up, the gradients of both and of their product, when the saved input of its
      last matrix is already freed (but not that of bitsandbytes' int8);
    - or in that last matrix, its input's gradient and the dequantised matrix;
    - or the gradients of the scores, when what the MLP saved is already freed.
    """
    width = mode.precision.compute * arch.intermediate * arch.experts_used
    inner = (3 if arch.gated else 2) * width - _last_input(arch, mode)
    narrow = 2 * arch.intermediate if mode.precision.quant == "4bit" and mode.precision.compute == 4 else 0
    apart = _adapted(mode, "down") and not (mode.fused and not mode.dropout)
    gradients = 2 if apart else 1  # an adapter's gradient beside the matrix's
    freed = 0 if mode.fused else _last_input(arch, mode)  # a fused product frees its input when it is done
    matrix = tokens * (gradients * width + narrow - freed) + dequantised(arch, mode.precision)
    scores = _score_gradients(arch, mode) - mlp(arch, mode)
    return tokens * mode.precision.residual * arch.hidden + max(tokens * inner, matrix, tokens * scores)


def adapters_forward(arch: Architecture, mode: LayerMode) -> int:
    """Return the peak of a layer's forward pass with gradients, besides what it saves, due to adapters of the MLP.

    It can exceed that of the backward pass; 0 without such adapters.

    - On gate or up: an adapter's product twice, while it is scaled, beside the matrix's own, when the MLP's last
      matrix has not saved its input yet.
    - On the last matrix: its input as given, as the adapter reads it, and after dropout before it is narrowed.
    """
    precision, stream = mode.precision, _stream(mode) * arch.hidden
    width, wide = precision.compute * arch.intermediate, mode.adapter * arch.intermediate
    peak = 0
    if _adapted(mode, "mlp"):
        peak = _scaled(arch, mode) - _last_input(arch, mode)
    if _adapted(mode, "down"):
        saved = precision.quant == "int8" or (mode.fused and not mode.dropout)
        matrix_input = 0 if saved else width
        adapter_input = wide if width < wide and (mode.dropout or precision.amp) and not mode.fused else 0
        after_dropout = wide if mode.dropout and precision.amp and not mode.fused else 0
        peak = max(peak, matrix_input + adapter_input + after_dropout + stream)
    if peak <= 0:
        return 0
    return peak + (3 if _stream(mode) < 4 else 2) * stream  # a float32 stream is the very tensor that its norm saves


def forward_transient(arch: Architecture, mode: LayerMode, tokens: int) -> int:
    """Return the peak of one layer without gradients, in bytes.

    It is in the MLP, the attention, or where a 4-bit matrix of the MLP is dequantised, with input and product in
    16 bits.
    """
    p, inner = mode.precision, arch.intermediate * arch.experts_used
    width = p.compute * inner
    other = width if arch.gated else 0
    mlp_width = (3 if arch.gated else 4 if arch.activation == "gelu_new" else 2) * width
    if p.quant == "int8":  # a product in int32, in float16 and in its final dtype; its input in int8
        mlp_width = max(mlp_width, other + width + 6 * inner + arch.hidden)
    if _adapted(mode, "mlp"):
        mlp_width = max(mlp_width, other + width + _scaled(arch, mode))
    heads = p.attention * (2 * arch.q + 2 * arch.kv) + p.compute * (arch.q + arch.kv)
    scores = 2 * p.attention * arch.heads * mode.length if mode.attention in ("math", "eager") else 0
    if mode.masked and mode.attention == "efficient":  # the mask as numbers, and once more with rows padded
        scores = (2 if mode.length * p.attention % 16 else 1) * p.attention * mode.length
    always = 4 * p.residual * arch.hidden + (mode.length if mode.masked else 0)
    widest = tokens * (always + max(mlp_width, heads + scores))
    if p.quant == "4bit" and tokens > FUSED_4BIT_ROWS:
        widest = max(widest, tokens * (always + other + 2 * inner + 2 * arch.hidden) + dequantised(arch, p))
    return widest


def dequantised(arch: Architecture, precision: Precision) -> int:
    """Return the bytes (not per token) of the largest matrix, dequantised for the backward pass."""
    largest = max((one.inputs * one.outputs for one in arch.linears), default=0)
    match precision.quant:
        case "int8":
            return precision.compute * largest
        case "4bit":
            return 2 * largest
        case None:
            return 0


def leak(arch: Architecture, mode: LayerMode) -> int:
    """Return the inputs that bitsandbytes' int8 saves unseen by non-reentrant checkpointing, which keeps them alive."""
    if mode.precision.quant != "int8":
        return 0
    return 2 * _stream(mode) * arch.hidden + mode.precision.compute * (arch.q + arch.intermediate)


def _adapted(mode: LayerMode, source: str) -> bool:
    """Return whether a matrix that reads this tensor has an adapter."""
    return any(one.source == source for one in mode.targets)


def _input_width(mode: LayerMode, source: str) -> int:
    """Return the bytes per element of what the matrices read: a norm's output, attention's, or the MLP's product."""
    return {"out": mode.precision.attention, "down": mode.precision.compute}.get(source, _stream(mode))


def _scaled(arch: Architecture, mode: LayerMode) -> int:
    """Return the size of an adapter's product on one of the MLP's first matrices, before and after it is scaled.

    PEFT also clones the output of a 4-bit matrix. A fused product is added as it is computed.
    """
    if mode.fused:
        return 0
    cloned = mode.precision.compute if mode.precision.quant == "4bit" else 0
    return (2 * (2 if mode.precision.amp else mode.adapter) + cloned) * arch.intermediate


def _last_input(arch: Architecture, mode: LayerMode) -> int:
    """Return what the MLP's last matrix and its adapter save of their input, freed once their gradients exist."""
    wide = arch.intermediate * arch.experts_used
    if mode.full:
        return mode.precision.compute * wide
    if not _adapted(mode, "down"):
        return 0
    element = 2 if mode.precision.amp else mode.adapter
    if mode.precision.quant == "int8" and not mode.dropout and element == mode.precision.compute:
        return 0  # bitsandbytes saves the same tensor
    return (element + (mode.dropout_mask if mode.dropout else 0)) * wide


def _score_gradients(arch: Architecture, mode: LayerMode) -> int:
    """Return the float32 gradients before and after the softmax of plain matrix products, less a freed 16-bit copy."""
    if mode.attention not in ("math", "eager"):
        return 0
    copy = mode.precision.attention if mode.precision.attention < 4 else 0
    return (8 - copy) * arch.heads * mode.length


def _stream(mode: LayerMode) -> int:
    """Return the bytes per element of a norm's output, which has the residual stream's dtype."""
    return mode.precision.residual
