"""Bytes of the weights, by precision."""

from .architecture import Architecture
from .optimizer import Trained
from .precision import Precision

NF4_BLOCK = 64
"""Elements that share one scale (bitsandbytes, functional.quantize_4bit)."""
NF4_NESTED_BLOCK = 256


def plain(elements: int, width: int) -> int:
    """Return unquantised weights: 4 bytes (fp32) or 2 (bf16, fp16) each."""
    return elements * width


def int8(elements: int, rows: int) -> int:
    """Return LLM.int8() weights: one byte each, and a float32 scale per output row (arXiv:2208.07339)."""
    return elements + 4 * rows


def four_bit(elements: int, double: bool) -> int:
    """Return nf4 or fp4 weights: half a byte each, and a float32 scale per block of 64.

    With double quantisation the scales have 8 bits (arXiv:2305.14314): 0.516 instead of 0.5625 bytes per element.
    """
    blocks = -(-elements // NF4_BLOCK)
    scales = blocks + 4 * (-(-blocks // NF4_NESTED_BLOCK)) if double else 4 * blocks
    return -(-elements // 2) + scales


def matrices(arch: Architecture, precision: Precision) -> int:
    """Return the matrices inside layers, which are quantised, except the experts of a mixture."""
    if precision.quant is None:
        return plain(arch.linear, precision.native)
    quantised, experts = arch.linear - arch.expert, plain(arch.expert, precision.other)
    if precision.quant == "int8":
        return int8(quantised, arch.layers * arch.layer_rows) + experts
    return four_bit(quantised, precision.double_quant) + experts


def base(arch: Architecture, precision: Precision, *, head: bool = True) -> int:
    """Return the whole base on the device.

    Args:
        arch: sizes of the model.
        precision: its precision.
        head: with its language-model head; a reward model has none.
    """
    other = arch.other
    if not head and not arch.tied:
        other -= arch.embedding
    return matrices(arch, precision) + plain(other, precision.other)


def tensors(arch: Architecture, *, head: bool = True) -> tuple[Trained, ...]:
    """List every tensor of a model, matrices first, as in the Trainer's parameter groups.

    Args:
        arch: sizes of the model.
        head: with its language-model head; a reward model has none.
    """
    heads = 1 if head and not arch.tied else 0
    embedding = Trained(arch.vocab, arch.hidden)
    matrices_of_layers = tuple(Trained(one.outputs, one.inputs, arch.layers * one.count) for one in arch.linears)
    positions = (Trained(arch.extra // arch.hidden, arch.hidden),) if arch.extra > 4 * arch.hidden else ()
    vectors = arch.other - arch.embedding * (1 if arch.tied else 2) - sum(one.elements for one in positions)
    small = (Trained(arch.hidden, count=vectors // arch.hidden),) if vectors >= arch.hidden else ()
    return (embedding, *positions, *matrices_of_layers, *(embedding,) * heads, *small)
