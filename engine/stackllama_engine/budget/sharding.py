"""Memory per GPU if the run were sharded (ZeRO, FSDP), in bytes.

The engine launches DDP; sharding is only estimated, by ``plan --shard``. Sources: ZeRO (arXiv:1910.02054, sections 5
and 7); DeepSpeed's documentation of ``reduce_bucket_size``; torch ``distributed/fsdp/_fully_shard`` (what a group
gathers and when it is freed).
"""

from typing import Literal

from msgspec import Struct

from .parts import Component, PhaseEstimate
from .training import Workload

Shard = Literal["zero2", "zero3", "fsdp"]
"""``zero2`` shards gradients and optimizer; ``zero3`` and ``fsdp`` parameters as well."""
REDUCE_BUCKET = 500_000_000
"""Default number of elements that DeepSpeed reduces at a time."""
_FORWARD = ("last layer's forward",)
_BACKWARD = ("last layer's backward", "first layer's backward")
_AT_HEAD = ("loss", "head's backward")


class Sharding(Struct, frozen=True, kw_only=True):
    """Kind of sharding and number of ranks."""

    kind: Shard
    ranks: int


def share(count: int, ranks: int) -> int:
    """Return one rank's share, padded so that all are equal."""
    return -(-count // ranks)


def kept(name: str, sharding: Sharding) -> int:
    """Return over how many ranks a component is sharded."""
    everywhere = ("gradients", "optimizer")
    with_parameters = (*everywhere, "base weights", "adapter")
    return sharding.ranks if name in (everywhere if sharding.kind == "zero2" else with_parameters) else 1


def reduce_bucket(work: Workload) -> int:
    """Return DeepSpeed's buffer for the gradients it reduces next."""
    return work.width * min(REDUCE_BUCKET, work.trained)


def layer_bytes(work: Workload) -> int:
    """Return one layer's gathered parameters."""
    adapters = 0 if work.mode.full else work.adapter // max(1, work.arch.layers)
    return (work.arch.layer_linear + work.arch.norms) * work.mode.precision.native + adapters


def gathered(work: Workload, phase: str, kind: Shard) -> int:
    """Return the temporarily unsharded parameters and gradients, if parameters are sharded.

    - Forward: a layer as gathered and as used, and the next one being gathered.
    - Backward: a layer and the next one, and if it is trained its gradient, with FSDP also that of the layer before,
      which is being reduced.
    - Loss: the head; the last layers are freed.
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
    """Return a phase of one rank.

    Args:
        one: the phase on a single GPU.
        work: workload of that GPU; its base must not be quantised if parameters are sharded.
        sharding: the sharding.
    """
    parts = [Component(part.name, share(part.bytes, kept(part.name, sharding))) for part in one.components]
    if sharding.kind != "zero2":
        parts.append(Component("gathered", gathered(work, one.name, sharding.kind)))
    if sharding.kind != "fsdp":
        backward = (*_BACKWARD, "embedding's backward", "head's backward")
        parts.append(Component("reduce bucket", reduce_bucket(work) if one.name in backward else 0))
    return PhaseEstimate(one.name, tuple(part for part in parts if part.bytes))
