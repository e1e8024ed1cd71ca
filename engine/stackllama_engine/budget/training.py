"""The phases of one training step: losses, backward passes, the optimizer's step.

The largest of them is the peak. Checkpointing keeps one residual stream a layer and runs a layer again for its
backward pass; without it every layer keeps everything.
"""

from typing import Literal

from msgspec import Struct

from . import activations, head, optimizer
from .activations import LayerMode
from .architecture import Architecture
from .head import Head
from .optimizer import Optimizer
from .parts import PhaseEstimate, phase

Checkpointing = Literal["none", "reentrant", "plain"]


class Workload(Struct, frozen=True, kw_only=True):
    """One training step on one device."""

    arch: Architecture
    mode: LayerMode
    sequences: int
    """A device and micro-batch."""
    base: int
    """Bytes of frozen and trained weights without adapters."""
    trained: int
    """Elements that are trained."""
    adapter: int = 0
    """Bytes of adapters and small heads."""
    width: int = 4
    """Bytes of a trained element."""
    checkpointing: Checkpointing = "none"
    optimizer: Optimizer = "fused"
    accumulates: bool = False
    """Gradients of earlier micro-batches lie there during the forward pass."""
    head: Head = "plain"
    head_bytes: int | None = None
    """What head and loss take, where no :mod:`.head` fits."""
    keeps_outputs: bool = False
    ddp: bool = False
    """A second copy of the gradients, in DDP's buckets."""
    on_gpu: bool = True

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.sequences * self.mode.length


def kept_by_layers(work: Workload) -> int:
    """What all layers keep between forward and backward pass."""
    arch, tokens = work.arch, work.tokens
    if work.checkpointing == "none":
        return arch.layers * tokens * activations.layer(arch, work.mode)
    residuals = arch.layers * tokens * work.mode.precision.residual * arch.hidden
    if work.checkpointing == "plain":
        residuals += arch.layers * tokens * activations.leak(arch, work.mode)
    return residuals


def one_layer(work: Workload) -> int:
    """What one layer keeps, made again for its backward pass under checkpointing; 0 where it is there already."""
    return 0 if work.checkpointing == "none" else work.tokens * activations.layer(work.arch, work.mode)


def outside_layers(work: Workload) -> int:
    """Token ids, the final norm, and its output."""
    h, precision = work.arch.hidden, work.mode.precision
    return work.tokens * (24 + 4 * h + 4 + precision.residual * h)


def phases(work: Workload) -> list[PhaseEstimate]:
    """Every phase of a step, from the second one on (the optimizer's states exist)."""
    arch, full = work.arch, work.mode.full
    gradients = optimizer.gradients(work.trained, work.width)
    early = gradients if work.accumulates else 0
    fixed = {
        "base_weights": work.base,
        "adapter": work.adapter,
        "optimizer": optimizer.states(work.trained, work.width, work.optimizer),
        "ddp_buckets": gradients if work.ddp else 0,
    }
    embedding = arch.embedding * work.width if full else 0
    if work.head_bytes is None:
        logits = head.loss(
            work.head, arch, work.mode.precision, work.tokens, on_gpu=work.on_gpu, kept=work.keeps_outputs
        )
    else:
        logits = work.head_bytes
    head_gradient = arch.embedding * (4 + (work.width if work.width < 4 else 0)) if full and work.head == "tiled" else (
        embedding if work.head != "score" else 0
    )  # fmt: skip
    kept, again, outside = kept_by_layers(work), one_layer(work), outside_layers(work)
    autocast = _cast_weights(work)
    outputs = work.mode.precision.head * arch.vocab * work.tokens if work.keeps_outputs and work.head == "plain" else 0
    transient = work.tokens * activations.backward_transient(arch, work.mode) + activations.dequantised(
        arch, work.mode.precision
    )
    matrix = max((one.inputs * one.outputs for one in arch.linears), default=0) * work.width if full else 0
    first = again or work.tokens * activations.layer(arch, work.mode)
    inner = gradients if arch.tied else gradients - embedding  # an untied embedding's gradient comes last of all
    copies = head.gradient_copies(work.head) if full else 0
    return [
        phase("loss", **fixed, gradients=early, activations=kept + outside, logits=logits,
              temporaries=head_gradient * max(1, copies) + autocast),
        phase("last layer's backward", **fixed, gradients=max(early, embedding), activations=kept + again,
              logits=outputs, temporaries=transient + autocast + (matrix if work.accumulates else 0)),
        phase("first layer's backward", **fixed, gradients=max(early, inner), activations=first, logits=outputs,
              temporaries=transient + autocast),
        phase("embedding's backward", **fixed, gradients=gradients, logits=outputs,
              activations=work.tokens * work.mode.precision.residual * arch.hidden,
              temporaries=embedding if arch.tied or work.accumulates else 0),
        phase("optimizer step", **fixed, gradients=gradients, logits=outputs,
              temporaries=optimizer.step_transient(work.trained, work.width, work.optimizer)),
    ]  # fmt: skip


def _cast_weights(work: Workload) -> int:
    """16-bit copies of trained float32 weights, which autocast keeps for the length of a forward pass."""
    precision = work.mode.precision
    if not (work.mode.full and precision.amp and precision.native == 4):
        return 0
    return 2 * (work.arch.linear + (work.arch.embedding if work.head == "plain" else 0))
