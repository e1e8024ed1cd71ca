"""Gradients and AdamW, in the dtype of the parameter they belong to."""

from typing import Literal

Optimizer = Literal["fused", "foreach", "loop", "adamw8bit", "paged8bit", "adafactor", "none"]
"""``none``: nothing on the device, as with optimizer state offloaded to the host."""


def gradients(trained: int, width: int) -> int:
    """One gradient a trained element."""
    return trained * width


def states(trained: int, width: int, kind: Optimizer) -> int:
    """AdamW's two moments, in the parameter's dtype: pure bf16 training has 4 bytes here, not 8.

    8-bit states take one byte each and a float32 scale a block of 256 (arXiv:2110.02861).
    """
    match kind:
        case "adamw8bit":
            return 2 * trained + 8 * (-(-trained // 256))
        case "paged8bit" | "none":
            return 0
        case "adafactor":
            return 0  # row and column sums: negligible
        case _:
            return 2 * trained * width


def step_transient(trained: int, width: int, kind: Optimizer) -> int:
    """What one step needs for a moment: foreach AdamW a copy of everything trained, the fused one nothing."""
    return trained * width if kind == "foreach" else 0
