"""Phases of a merge: everything in float32, whatever the target dtype (``train/merge.py``)."""

from .architecture import Architecture
from .parts import PhaseEstimate, phase

_WIDTH = 4


def phases(arch: Architecture, adapter: int, target: int) -> list[PhaseEstimate]:
    """Return the phases: load and probe, merge one matrix after another, save, load the result again.

    Args:
        arch: sizes of the base.
        adapter: elements of the adapter.
        target: bytes per element of the merged model.
    """
    weights, small = _WIDTH * arch.parameters, _WIDTH * adapter
    largest = max((one.inputs * one.outputs for one in arch.linears), default=0)
    probe = 512 * (_WIDTH * (8 * arch.hidden + 3 * arch.intermediate) + 3 * _WIDTH * arch.vocab)
    return [
        phase("load", base_weights=weights, adapter=small, temporaries=probe),
        phase("merge", base_weights=weights, adapter=small, temporaries=2 * _WIDTH * largest),
        phase("save", base_weights=weights, temporaries=target * arch.embedding),
        phase("verify", base_weights=weights, temporaries=probe),
    ]
