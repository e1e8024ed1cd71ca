"""The phases of one step on pairs against a frozen reference (DPO, arXiv:2305.18290), as TRL's DPOTrainer makes it.

No stage of the engine trains this way; the formula stands beside the trace of such a step in
``benchmarks/formula_vs_trace.py``.
"""

import msgspec

from . import activations, lm_head, training
from .parts import PhaseEstimate, phase


def phases(pairs: training.Workload) -> list[PhaseEstimate]:
    """Both answers of every pair go through the policy at once, then through the reference, which is the policy
    without its adapter and costs no weights; then the policy's backward pass.

    Args:
        pairs: a workload whose ``sequences`` are pairs, with the tiled head.
    """
    work = msgspec.structs.replace(pairs, sequences=2 * pairs.sequences)
    found = training.phases(work)
    standing = ("base weights", "adapter", "optimizer", "ddp buckets", "gradients", "activations")
    loss = next(one for one in found if one.name == "loss")
    held = {one.name.replace(" ", "_"): one.bytes for one in loss.components if one.name in standing}
    return [*found, phase("reference", **held, temporaries=reference(work))]


def reference(work: training.Workload) -> int:
    """The reference's forward pass without gradients: its widest layer, or behind the layers one tile of its head."""
    precision = work.mode.precision
    plain = msgspec.structs.replace(work.mode, targets=(), rank=0)
    layer = activations.forward_transient(work.arch, plain, work.tokens)
    rows, columns = min(work.tokens, lm_head.TILE_TOKENS), min(work.arch.vocab, lm_head.TILE_VOCABULARY)
    tile = precision.head * rows * columns + work.tokens * precision.residual * work.arch.hidden
    return max(layer, tile)
