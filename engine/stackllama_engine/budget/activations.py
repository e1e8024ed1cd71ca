"""Bytes that one token leaves behind in one layer for the backward pass, and what that pass needs for a moment.

Every function gives bytes a token. h hidden, q = heads · head_dim, kv = kv_heads · head_dim, I intermediate, S tokens
a sequence. What each operation saves follows from its derivative (torch, ``derivatives.yaml``) and from how
transformers' modelling files compose them; PyTorch's ``saved tensors`` tutorial explains the principle.
"""

from typing import Literal

from msgspec import Struct

from .architecture import Architecture, Linear
from .precision import Precision

Attention = Literal["flash", "efficient", "math", "eager"]
LAYER_NORMS = ("phi", "neox", "gpt2")
FUSED_4BIT_ROWS = 64
"""Rows up to which bitsandbytes multiplies 4-bit matrices without writing them out; the card and the shape decide."""


class LayerMode(Struct, frozen=True, kw_only=True):
    """How a layer runs."""

    precision: Precision
    full: bool = False
    """Every weight is trained."""
    targets: tuple[Linear, ...] = ()
    rank: int = 0
    dropout: bool = False
    dropout_mask: int = 1
    """Bytes of one element of dropout's mask: bool on a GPU, float32 on a CPU."""
    adapter: int = 4
    """Bytes of an adapter's element."""
    attention: Attention = "flash"
    masked: bool = False
    """Padded sequences: the kernel is given a mask, and keys and values repeated over groups."""
    length: int = 1
    """Tokens a sequence."""


def norms(arch: Architecture, mode: LayerMode) -> int:
    """RMS norms compute in float32 and keep that copy and one factor; layer norms keep their input."""
    h, compute = arch.hidden, _stream(mode)
    if arch.family in LAYER_NORMS:
        count = 2 if arch.family == "gpt2" else 1  # in the others attention and MLP read one tensor
        return count * mode.precision.residual * h + 16
    count = 4 if arch.norms >= 4 * h else 2
    kept = compute * h if mode.full else 0  # the normalised input, for the weight's gradient
    total = count * (4 * h + 4 + kept)
    if arch.qk_norm:
        total += 4 * (arch.q + arch.kv) + 4 * (arch.heads + arch.kv_heads)
        total += mode.precision.compute * (arch.q + arch.kv) if mode.full else 0
    return total


def attention(arch: Architecture, mode: LayerMode) -> int:
    """Queries, keys, values and output, and what the kernel keeps of the S × S scores."""
    a, q, length = mode.precision.attention, arch.q, mode.length
    kv = q if mode.masked or mode.attention in ("math", "eager") else arch.kv
    kept = a * (2 * q + 2 * kv)
    if arch.family == "neox":  # values are a view of the product that holds queries and keys, before they turn, too
        kept += 2 * a * q
    match mode.attention:
        case "flash":
            return kept + 4 * arch.heads
        case "efficient":
            return kept + 4 * arch.heads + (a * length if mode.masked else 0)
        case "math":  # the output is kept by its readers alone
            read = mode.full or mode.precision.quant == "int8" or _adapted(mode, "out")
            return kept - (0 if read else a * q) + a * arch.heads * length
        case "eager":  # softmax in float32, and its copy in the dtype of the values; Gemma 2 caps the scores
            capped = a if arch.model_type == "gemma2" else 0
            return kept + (4 + (a if a < 4 else 0) + capped) * arch.heads * length


def mlp(arch: Architecture, mode: LayerMode) -> int:
    """Gate, its activation and up where it is gated; the activation's input where it is not."""
    width = mode.precision.compute * arch.intermediate * arch.experts_used
    if arch.gated:
        return 3 * width
    return 4 * width if arch.activation == "gelu_new" else width


def linear_inputs(arch: Architecture, mode: LayerMode) -> int:
    """Inputs of the matrices, kept for their own gradients or by bitsandbytes' int8 (which keeps them regardless).

    Modules that read one tensor share it. Under autocast a float32 input is cast for each of them anew.
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
    """Inputs of A and B on every target, and dropout's mask."""
    amp, total = mode.precision.amp, 0
    shared: set[str] = set()
    for target in mode.targets:
        used = arch.experts_used if target.count > 1 else 1
        wide = 2 if amp else mode.adapter
        inner = wide * mode.rank
        if mode.dropout:
            total += used * ((mode.dropout_mask + wide) * target.inputs + inner)
            continue
        kept_already = mode.precision.quant == "int8" and not amp
        same_tensor = wide == mode.precision.compute and not amp
        if same_tensor and (kept_already or target.source in shared or target.source == "out"):
            total += used * inner
            continue
        shared.add(target.source)
        total += used * (wide * target.inputs + inner)
    return total


def layer(arch: Architecture, mode: LayerMode) -> int:
    """Everything one layer keeps a token."""
    parts = (norms, attention, mlp, linear_inputs, lora)
    return sum(part(arch, mode) for part in parts)


def spared(arch: Architecture, mode: LayerMode) -> int:
    """What the first layer does not keep, a token, where nothing before it is trained: its first norm, and the ways
    of its input to matrices and adapters, have no gradient to pass on."""
    if mode.full:
        return 0
    h, stream = arch.hidden, _stream(mode)
    first = stream * h + 8 if arch.family in LAYER_NORMS else 4 * h + 4
    masks = sum(mode.dropout_mask * one.inputs for one in mode.targets if one.source == "attn") if mode.dropout else 0
    kept_for_int8 = stream * h if mode.precision.quant == "int8" and mode.dropout else 0
    return first + masks + kept_for_int8


def norm_backward(arch: Architecture, mode: LayerMode) -> int:
    """The most that the backward pass of one norm holds, a token, the stream's gradient included: an RMS norm's is
    made of five float32 products, a layer norm's is one kernel."""
    stream = _stream(mode) * arch.hidden
    return 2 * stream if arch.family in LAYER_NORMS else 5 * 4 * arch.hidden + stream


def backward_transient(arch: Architecture, mode: LayerMode, tokens: int) -> int:
    """The most that a layer's backward pass holds besides what was kept, in bytes: the residual stream's gradient, and

    - where the MLP's gate meets its other half, the gradients of both and of their product, by when what its last
      matrix kept is gone (but not what bitsandbytes' int8 keeps);
    - or in that last matrix, its input's gradient and the matrix written out;
    - or the gradients of the scores, by when what the MLP kept is gone.
    """
    width = mode.precision.compute * arch.intermediate * arch.experts_used
    inner = (3 if arch.gated else 2) * width - _last_input(arch, mode)
    narrow = 2 * arch.intermediate if mode.precision.quant == "4bit" and mode.precision.compute == 4 else 0
    ways = 2 if _adapted(mode, "down") else 1  # an adapter's gradient beside the matrix's
    matrix = tokens * (ways * width + narrow - _last_input(arch, mode)) + dequantised(arch, mode.precision)
    scores = _score_gradients(arch, mode) - mlp(arch, mode)
    return tokens * mode.precision.residual * arch.hidden + max(tokens * inner, matrix, tokens * scores)


def adapters_forward(arch: Architecture, mode: LayerMode) -> int:
    """The most that a layer's forward pass under gradients holds besides what it keeps, a token, where adapters of
    the MLP make it more than the backward pass does; 0 where there are none.

    - On one half of the gate: an adapter's product twice, while it is scaled, beside the matrix's own, when what the
      MLP's last matrix keeps is still to come.
    - On the last matrix: its input as it is given, as the adapter reads it, and dropped out before it is narrowed.
    """
    precision, stream = mode.precision, _stream(mode) * arch.hidden
    width, wide = precision.compute * arch.intermediate, mode.adapter * arch.intermediate
    found = 0
    if _adapted(mode, "mlp"):
        found = _scaled(arch, mode) - _last_input(arch, mode)
    if _adapted(mode, "down"):
        given = 0 if precision.quant == "int8" else width
        read = wide if width < wide and (mode.dropout or precision.amp) else 0
        dropped = wide if mode.dropout and precision.amp else 0
        found = max(found, given + read + dropped + stream)
    if found <= 0:
        return 0
    return found + (3 if _stream(mode) < 4 else 2) * stream  # a float32 stream is what its norm keeps


def forward_transient(arch: Architecture, mode: LayerMode, tokens: int) -> int:
    """What one layer holds while it runs without gradients, at its widest place, in bytes: the MLP, the attention, or
    a 4-bit matrix of the MLP written out, beside its input and product in 16 bits."""
    p, inner = mode.precision, arch.intermediate * arch.experts_used
    width = p.compute * inner
    other = width if arch.gated else 0
    mlp_width = (3 if arch.gated else 4 if arch.activation == "gelu_new" else 2) * width
    if p.quant == "int8":  # a product in int32, in float16 and as it is given; its input in int8
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
    """The largest matrix written out for the backward pass; bytes, not a token."""
    largest = max((one.inputs * one.outputs for one in arch.linears), default=0)
    match precision.quant:
        case "int8":
            return precision.compute * largest
        case "4bit":
            return 2 * largest
        case None:
            return 0


def leak(arch: Architecture, mode: LayerMode) -> int:
    """int8 under non-reentrant checkpointing: inputs that bitsandbytes keeps where the checkpoint cannot see them."""
    if mode.precision.quant != "int8":
        return 0
    return 2 * _stream(mode) * arch.hidden + mode.precision.compute * (arch.q + arch.intermediate)


def _adapted(mode: LayerMode, source: str) -> bool:
    """Whether a matrix that reads this tensor has an adapter."""
    return any(one.source == source for one in mode.targets)


def _scaled(arch: Architecture, mode: LayerMode) -> int:
    """An adapter's product on the MLP's first matrices and the same scaled, beside the matrix's own; PEFT clones what
    a 4-bit matrix gives."""
    cloned = mode.precision.compute if mode.precision.quant == "4bit" else 0
    return (2 * (2 if mode.precision.amp else mode.adapter) + cloned) * arch.intermediate


def _last_input(arch: Architecture, mode: LayerMode) -> int:
    """What the MLP's last matrix and its adapter keep of their input, gone once their gradients are there."""
    wide = arch.intermediate * arch.experts_used
    if mode.full:
        return mode.precision.compute * wide
    if not _adapted(mode, "down"):
        return 0
    element = 2 if mode.precision.amp else mode.adapter
    if mode.precision.quant == "int8" and not mode.dropout and element == mode.precision.compute:
        return 0  # bitsandbytes keeps the same tensor
    return (element + (mode.dropout_mask if mode.dropout else 0)) * wide


def _score_gradients(arch: Architecture, mode: LayerMode) -> int:
    """Of plain matrix products: gradients before and behind the softmax in float32, less a 16-bit copy used up."""
    if mode.attention not in ("math", "eager"):
        return 0
    copy = mode.precision.attention if mode.precision.attention < 4 else 0
    return (8 - copy) * arch.heads * mode.length


def _stream(mode: LayerMode) -> int:
    """Bytes of a norm's output: it has the residual stream's dtype."""
    return mode.precision.residual
