"""What several GPUs hold each: everything and a copy of the gradients (DDP), or shares of it (ZeRO, FSDP); bytes.

The engine launches DDP; shares are a what-if of ``plan --shard``. Sources: ZeRO (arXiv:1910.02054, sections 5 and 7);
DeepSpeed's documentation of ``reduce_bucket_size``; torch ``distributed/fsdp/_fully_shard`` (what a group gathers and
when it lets go); torch ``reducer.cpp`` for DDP's buckets.
"""

from typing import Literal

from msgspec import Struct

from .parts import Component, PhaseEstimate
from .training import Workload

Shard = Literal["zero2", "zero3", "fsdp"]
"""``zero2``: gradients and optimizer; ``zero3`` and ``fsdp``: parameters as well."""
REDUCE_BUCKET = 500_000_000
"""Elements that DeepSpeed reduces at a time, by default."""
_FORWARD = ("last layer's forward",)
_BACKWARD = ("last layer's backward", "first layer's backward")
_AT_HEAD = ("loss", "head's backward")


class Sharding(Struct, frozen=True, kw_only=True):
    """Who holds what."""

    kind: Shard
    ranks: int


def share(count: int, ranks: int) -> int:
    """One rank's part, padded so that all are equal."""
    return -(-count // ranks)


def kept(name: str, sharding: Sharding) -> int:
    """Among how many ranks a component is divided."""
    everywhere = ("gradients", "optimizer")
    with_parameters = (*everywhere, "base weights", "adapter")
    return sharding.ranks if name in (everywhere if sharding.kind == "zero2" else with_parameters) else 1


def reduce_bucket(work: Workload) -> int:
    """DeepSpeed's buffer for the gradients it reduces next."""
    return work.width * min(REDUCE_BUCKET, work.trained)


def layer_bytes(work: Workload) -> int:
    """One layer's parameters, gathered."""
    adapters = 0 if work.mode.full else work.adapter // max(1, work.arch.layers)
    return (work.arch.layer_linear + work.arch.norms) * work.mode.precision.native + adapters


def gathered(work: Workload, phase: str, kind: Shard) -> int:
    """Parameters and gradients that are whole for a moment, where parameters are shared out.

    - Forward: a layer as it was gathered, as it is used, and the next one on its way.
    - Backward: a layer and the next one, and where it is trained its gradient, and that of the layer behind it on its
      way out.
    - Loss: the head; the last layers have been let go.
    """
    layer, embedding = layer_bytes(work), work.arch.embedding * work.mode.precision.native
    head = embedding if work.head != "score" else 0
    if phase in _AT_HEAD:
        return head
    if phase == "embedding's backward":
        return 2 * embedding
    if phase in _FORWARD:
        return 3 * layer
    if phase not in _BACKWARD:
        return 0
    gradients = 2 * layer if work.mode.full and kind == "fsdp" else layer if work.mode.full else 0
    return 2 * layer + gradients


def sharded(one: PhaseEstimate, work: Workload, sharding: Sharding) -> PhaseEstimate:
    """A phase of one rank.

    Args:
        one: the phase on a single GPU.
        work: of that GPU; its base must not be quantised where parameters are shared out.
        sharding: what is divided.
    """
    parts = [Component(part.name, share(part.bytes, kept(part.name, sharding))) for part in one.components]
    if sharding.kind != "zero2":
        parts.append(Component("gathered", gathered(work, one.name, sharding.kind)))
    if sharding.kind != "fsdp":
        backward = (*_BACKWARD, "embedding's backward", "head's backward")
        parts.append(Component("reduce bucket", reduce_bucket(work) if one.name in backward else 0))
    return PhaseEstimate(one.name, tuple(part for part in parts if part.bytes))
