"""Phases of one training step: loss, backward passes, optimizer step.

The largest is the peak. Checkpointing saves one residual stream per layer and runs a layer again for its backward pass;
without it every layer saves all its activations.
"""

from typing import Literal

from msgspec import Struct

from . import activations, adapter, lm_head, optimizer, weights
from .activations import LayerMode
from .architecture import Architecture
from .lm_head import Head
from .optimizer import Optimizer, Trained
from .parts import PhaseEstimate, phase

Checkpointing = Literal["none", "reentrant", "plain"]


class Workload(Struct, frozen=True, kw_only=True):
    """One training step on one device."""

    arch: Architecture
    mode: LayerMode
    sequences: int
    """Sequences per device and micro-batch."""
    base: int
    """Bytes of frozen and trained weights without adapters."""
    trained: int
    """Number of trained elements."""
    resting_layers: int = 0
    """Layers of another adapter of the mode's shape among them, which a pass does not read."""
    adapter: int = 0
    """Bytes of adapters and small heads."""
    width: int = 4
    """Bytes per trained element."""
    checkpointing: Checkpointing = "none"
    optimizer: Optimizer = "fused"
    accumulates: bool = False
    """Gradients of earlier micro-batches exist during the forward pass."""
    head: Head = "plain"
    head_bytes: int | None = None
    """Bytes of head and loss, if none of :mod:`.lm_head` applies."""
    keeps_outputs: bool = False
    ddp: bool = False
    """DDP: a second copy of the gradients, in its buckets."""
    summed: bool = False
    """Gradients are summed over ranks in one flat copy, also with one rank (``train/ppo/update.py``)."""
    on_gpu: bool = True

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.sequences * self.mode.length

    @property
    def tensors(self) -> tuple[Trained, ...]:
        """Trained tensors; elements outside the matrices, such as a score head, count as a vector."""
        arch, mode = self.arch, self.mode
        if mode.full:
            known = weights.tensors(arch, head=self.head != "score")
        else:
            known = adapter.tensors(mode.targets, mode.rank, arch.layers)
            known += adapter.tensors(mode.targets, mode.rank, self.resting_layers)
        rest = self.trained - optimizer.elements(known)
        return (*known, Trained(rest)) if rest > 0 else known


def kept_by_layers(work: Workload) -> int:
    """Return what all layers save between forward and backward pass."""
    arch, tokens = work.arch, work.tokens
    if work.checkpointing == "none":
        return tokens * (arch.layers * activations.layer(arch, work.mode) - activations.spared(arch, work.mode))
    residuals = arch.layers * tokens * work.mode.precision.residual * arch.hidden
    if work.checkpointing == "plain":
        residuals += arch.layers * tokens * activations.leak(arch, work.mode)
    return residuals


def one_layer(work: Workload) -> int:
    """Return what one layer saves when recomputed for its backward pass; 0 without checkpointing.

    A float32 stream needs no copy for the first norm, which then saves the checkpoint itself. Reentrant checkpointing
    holds the layer's output during its backward pass.
    """
    if work.checkpointing == "none":
        return 0
    arch, stream = work.arch, work.mode.precision.residual * work.arch.hidden
    again = activations.layer(arch, work.mode)
    if work.mode.precision.residual == 4 or arch.family in activations.LAYER_NORMS:
        again -= stream
    if work.checkpointing == "reentrant":
        again += stream
    return work.tokens * again


def outside_layers(work: Workload) -> int:
    """Return token ids and the final norm; if all weights are trained, its output as well."""
    h, precision = work.arch.hidden, work.mode.precision
    return work.tokens * (24 + 4 * h + 4 + (precision.residual * h if work.mode.full else 0))


def phases(work: Workload) -> list[PhaseEstimate]:
    """Return every phase of a step, from the second step on (the optimizer's states exist)."""
    arch, full, precision = work.arch, work.mode.full, work.mode.precision
    gradients = optimizer.gradients(work.trained, work.width)
    early = gradients if work.accumulates else 0
    fixed = {
        "base_weights": work.base,
        "adapter": work.adapter,
        "optimizer": optimizer.states(work.tensors, work.width, work.optimizer),
        # DDP's buckets are one more copy of the gradients and stay between steps (torch ``reducer.cpp``)
        "ddp_buckets": gradients if work.ddp else 0,
    }
    embedding = arch.embedding * work.width if full else 0
    if work.head_bytes is None:
        logits = lm_head.loss(
            work.head, arch, work.mode.precision, work.tokens, on_gpu=work.on_gpu, kept=work.keeps_outputs
        )
        backward = lm_head.logit_gradients(work.head, arch.vocab, work.tokens, work.mode.precision.head)
    else:
        logits, backward = work.head_bytes, 0
    at_loss, at_head = lm_head.gradients(work.head, arch.embedding, work.width) if full else (0, 0)
    kept, again, outside = kept_by_layers(work), one_layer(work), outside_layers(work)
    casts, one_cast = cast_weights(work)
    later = one_cast if again else casts
    outputs = work.mode.precision.head * arch.vocab * work.tokens if work.keeps_outputs and work.head == "plain" else 0
    transient = activations.backward_transient(arch, work.mode, work.tokens)
    forward = work.tokens * activations.adapters_forward(arch, work.mode)
    # recomputed while the final norm's float32 gradient exists, and a copy of it in the stream's dtype
    left = 4 + (precision.residual if precision.residual < 4 else 0)
    rerun = forward + work.tokens * left * arch.hidden if forward and again else 0
    transient = max(transient, rerun)
    down = max((one.inputs * one.outputs for one in arch.linears), default=0) * work.width if full else 0
    step = optimizer.step_transient(work.tensors, work.width, work.optimizer, on_gpu=work.on_gpu)
    first = again or work.tokens * (activations.layer(arch, work.mode) - activations.spared(arch, work.mode))
    # an untied embedding's gradient comes last of all, those of the first layer just before it
    inner = gradients - (arch.layer_linear * work.width - down + (0 if arch.tied else embedding) if full else 0)
    return [
        phase(
            "last layer's forward",
            **fixed,
            gradients=early,
            activations=kept,
            temporaries=(0 if again else forward) + casts,
        ),
        phase("loss", **fixed, gradients=early, activations=kept + outside, logits=logits, temporaries=at_loss + casts),
        phase(
            "head's backward",
            **fixed,
            gradients=early,
            activations=kept + outside,
            temporaries=at_head + casts,
            logits=outputs + backward,
        ),
        phase(
            "final norm's backward",
            **fixed,
            gradients=max(early, embedding),
            activations=kept + outside,
            logits=outputs,
            temporaries=work.tokens * activations.norm_backward(arch, work.mode) + casts,
        ),
        phase(
            "last layer's backward",
            **fixed,
            gradients=max(early, embedding + down),
            activations=kept + again,
            logits=outputs,
            temporaries=transient + later + (down if work.accumulates else 0),
        ),
        phase(
            "first layer's backward",
            **fixed,
            gradients=max(early, inner),
            activations=first,
            logits=outputs,
            temporaries=transient + one_cast,
        ),
        phase(
            "embedding's backward",
            **fixed,
            gradients=gradients,
            logits=outputs,
            activations=work.tokens * work.mode.precision.residual * arch.hidden,
            temporaries=embedding if arch.tied or work.accumulates else 0,
        ),
        phase(
            "optimizer step",
            **fixed,
            gradients=gradients,
            logits=outputs,
            temporaries=max(step, gradients if work.summed else 0),
        ),
    ]


def cast_weights(work: Workload) -> tuple[int, int]:
    """Return the 16-bit copies of float32 weights under autocast: those at the forward pass's end, and one layer's.

    Autocast keeps a copy of trained weights for the whole forward pass. Of frozen ones it makes a copy for each use,
    which lives as long as the graph that needs it.
    """
    precision, arch = work.mode.precision, work.arch
    if not precision.amp:
        return 0, 0
    resting = adapter.parameters(work.mode.targets, work.mode.rank, work.resting_layers)
    adapters = 0 if work.mode.full or work.checkpointing != "none" else 2 * (work.trained - resting)
    if precision.native < 4 or precision.quant:
        return adapters, adapters // max(1, arch.layers)
    one = 2 * arch.layer_linear
    if work.checkpointing != "none" and not work.mode.full:
        return one, one
    return arch.layers * one + adapters + (2 * arch.embedding if work.head == "plain" else 0), one
