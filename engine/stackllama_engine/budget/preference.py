"""Phases of one DPO step on pairs against a frozen reference (arXiv:2305.18290), as in TRL's DPOTrainer.

``benchmarks/formula_vs_trace.py`` compares the formula with a trace.
"""

import msgspec

from . import activations, lm_head, training
from .parts import PhaseEstimate, phase


def phases(pairs: training.Workload) -> list[PhaseEstimate]:
    """Return the phases of one step: policy forward on both responses of every pair, reference, policy backward.

    The reference is the policy without its adapter, and needs no weights of its own.

    Args:
        pairs: a workload whose ``sequences`` are pairs, with the tiled head.
    """
    work = msgspec.structs.replace(pairs, sequences=2 * pairs.sequences)
    policy = training.phases(work)
    names = ("base weights", "adapter", "optimizer", "ddp buckets", "gradients", "activations")
    loss = next(one for one in policy if one.name == "loss")
    resident = {one.name.replace(" ", "_"): one.bytes for one in loss.components if one.name in names}
    return [*policy, phase("reference", **resident, temporaries=reference(work))]


def reference(work: training.Workload) -> int:
    """Return the peak of the reference's forward pass without gradients: in a layer, or in one tile of its head."""
    precision = work.mode.precision
    plain = msgspec.structs.replace(work.mode, targets=(), rank=0)
    layer = activations.forward_transient(work.arch, plain, work.tokens)
    rows, columns = min(work.tokens, lm_head.TILE_TOKENS), min(work.arch.vocab, lm_head.TILE_VOCABULARY)
    tile = precision.head * rows * columns + work.tokens * precision.residual * work.arch.hidden
    return max(layer, tile)
