"""Differences of other people's training stacks from ours, as workloads of our formula.

A stack decides which head computes the loss, which attention kernel runs, which optimizer steps, and in which dtype
adapters are. Everything else is the formula of ``stackllama_engine.budget``, unchanged.
"""

import re
from typing import Any, Literal

import msgspec
from model_configs import KEYS
from msgspec import Struct

from stackllama_engine.budget import adapter, optimizer, training, weights
from stackllama_engine.budget.activations import LayerMode
from stackllama_engine.budget.architecture import Architecture
from stackllama_engine.budget.parts import Component, PhaseEstimate
from stackllama_engine.budget.precision import Precision
from stackllama_engine.budget.shapes import architecture_of

Metric = Literal["allocated", "reserved", "capacity"]

_MODELS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "llama-3.2-3b": ("llama", (3072, 28, 24, 8, 128, 8192, 128256, True)),
    "llama 3.2 3b": ("llama", (3072, 28, 24, 8, 128, 8192, 128256, True)),
    "llama 3.1 8b": ("llama", (4096, 32, 32, 8, 128, 14336, 128256, False)),
}
_COMPILED = 0.64
"""Share of the layers' activations that torch.compile's partitioner keeps: norms and gates are computed again."""

_SHIFTED = 16
"""Bytes per logit in transformers of 2024: besides float32 logits and their gradients a shifted copy."""


class Case(Struct, frozen=True, kw_only=True):
    """One measured row as a workload."""

    arch: Architecture
    phases: list[PhaseEstimate]
    metric: Metric
    longer: int = 0
    """Of a capacity row: the peak with a context a tenth longer, which did not fit."""

    @property
    def allocated(self) -> int:
        """The predicted peak."""
        return max(one.bytes for one in self.phases)


def model_of(name: str) -> Architecture | None:
    """Return the architecture that a row names; None for one whose sizes are not in the table above."""
    for key, (kind, sizes) in _MODELS.items():
        if key in name.lower():
            config = {"model_type": kind, **dict(zip(KEYS, sizes, strict=True)), "dtype": "bfloat16"}
            return architecture_of(config, name, name, frozenset())
    return None


def case_of(row: dict[str, str]) -> Case | None:
    """Return a row as a workload; None when its columns do not say enough, or it runs on several GPUs."""
    arch = model_of(row["model"])
    if arch is None or row["gpus"] != "1" or row["parallel"] not in ("", "none"):
        return None
    stack = row["stack"]
    if "hand-written loop" in stack:
        return _peft(row, arch)
    if stack.startswith("torchtune"):
        return _torchtune(row, arch)
    if stack.startswith("HF + FA2"):
        return _capacity(row, arch)
    return None


def _peft(row: dict[str, str], arch: Architecture) -> Case | None:
    """Read a row of PEFT's method comparison.

    bf16 weights, float32 adapters, logits in full, outputs alive, foreach AdamW; padded batches of four, the longest of
    729 tokens; measured as reserved at the end of the run.
    """
    if row["method"] not in ("lora", "full-finetuning", "beft"):
        return None  # methods whose activations our formula does not know
    notes = row["notes"]
    full = row["method"] == "full-finetuning"
    match = re.search(r"max (\d+)", row["seq_len"])
    trained = int(re.search(r"trainable=(\d+)", notes)[1])  # type: ignore[index]
    mode = LayerMode(
        precision=Precision(native=2),
        full=full,
        targets=adapter.targets(arch, row["lora_targets"].split("+")) if row["method"] == "lora" else (),
        rank=int(row["lora_r"]) if row["method"] == "lora" else 0,
        attention="efficient",
        masked=True,
        length=int(match[1]) if match else 768,
    )
    width = 2 if full else 4
    work = training.Workload(
        arch=arch,
        mode=mode,
        sequences=int(row["batch"]),
        base=weights.base(arch, mode.precision),
        trained=trained,
        adapter=0 if full else trained * width,
        width=width,
        optimizer="foreach",
        head="plain",
        keeps_outputs=True,
    )
    phases = training.phases(work)
    if "dora" in notes:
        phases = _more(phases, work.tokens * arch.layers * _dora(work), "dora")
    return Case(arch=arch, phases=phases, metric="reserved")


def _dora(work: training.Workload) -> int:
    """Return what DoRA keeps per token and layer: of each target the base's output and the scaled result in float32."""
    return sum(2 * 4 * target.outputs for target in work.mode.targets)


def _torchtune(row: dict[str, str], arch: Architecture) -> Case | None:
    """Read a row of torchtune's: pure bf16, packed batches, kernels with expanded keys and values; peak active."""
    length = int(re.match(r"\d+", row["seq_len"])[0])  # type: ignore[index]
    if "dynamic" in row["seq_len"] or row["optimizer"] == "not stated":
        return None  # nor are the lengths of its batches stated
    step = row["notes"]
    chain = [
        "+packed",
        "+compile",
        "+chunked CE",
        "+activation checkpointing",
        "+optimizer in backward",
        "+activation offload",
        "+AdamW8bit",
        "LoRA",
        "QLoRA",
    ]
    flags = set(chain[: chain.index(step) + 1]) if step in chain else _single_device(row)
    if "+activation offload" in flags and "LoRA" not in flags:
        flags.add("+activation checkpointing")
    full, quant = row["method"] == "full", "4bit" if row["method"] == "qlora" else None
    precision = Precision(native=2, quant=quant, double_quant=True)
    names = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    mode = LayerMode(
        precision=precision,
        full=full,
        targets=() if full else adapter.targets(arch, names),
        rank=0 if full else 8,
        adapter=2,
        attention="efficient",
        masked=False,
        length=length,
    )
    expanded = msgspec.structs.replace(arch, kv_heads=arch.heads)
    kinds: dict[bool, optimizer.Optimizer] = {True: "adamw8bit", False: "fused"}
    kind = "paged8bit" if "paged" in flags else kinds["+AdamW8bit" in flags]
    trained = arch.parameters if full else adapter.parameters(mode.targets, mode.rank, arch.layers)
    work = training.Workload(
        arch=expanded,
        mode=mode,
        sequences=int(row["batch"]),
        base=weights.base(arch, precision),
        trained=trained,
        adapter=0 if full else 2 * trained,
        width=2,
        optimizer=kind,
        checkpointing="plain" if "+activation checkpointing" in flags else "none",
        head="chunked" if "+chunked CE" in flags else "plain",
    )
    phases = training.phases(work)
    if "+compile" in flags and "+activation checkpointing" not in flags:
        phases = [_scaled(one, "activations", _COMPILED) for one in phases]
    if "+optimizer in backward" in flags and full:
        phases = [_scaled(one, "gradients", 0.05) for one in phases]
    if "+activation offload" in flags:
        phases = [_scaled(one, "activations", 0.15) if one.name == "loss" else one for one in phases]
    return Case(arch=arch, phases=phases, metric="allocated")


def _single_device(row: dict[str, str]) -> set[str]:
    """Return the flags of the first table: compiled; the rows on a 24 GB card, and QLoRA, checkpoint."""
    flags = {"+packed", "+compile", "+chunked CE"}
    if "4090" in row["hardware"]:
        flags.add("+activation checkpointing")
    if "optimizer_in_bwd" in row["optimizer"]:
        flags |= {"+optimizer in backward", "paged"}
    return flags


def _capacity(row: dict[str, str], arch: Architecture) -> Case:
    """Read the longest context that fits a card: Hugging Face with FlashAttention 2, QLoRA on every linear."""
    length = int(row["seq_len"])
    longer = max(one.bytes for one in _qlora(row, arch, round(length * 1.1)))
    return Case(arch=arch, phases=_qlora(row, arch, length), metric="capacity", longer=longer)


def _qlora(row: dict[str, str], arch: Architecture, length: int) -> list[PhaseEstimate]:
    precision = Precision(native=2, quant="4bit", double_quant=True, kbit=True, amp=True)
    mode = LayerMode(
        precision=precision, targets=arch.linears, rank=int(row["lora_r"]), attention="flash", length=length
    )
    trained = adapter.parameters(mode.targets, mode.rank, arch.layers)
    work = training.Workload(
        arch=arch,
        mode=mode,
        sequences=1,
        base=weights.base(arch, precision),
        trained=trained,
        adapter=4 * trained,
        optimizer="adamw8bit",
        checkpointing="plain",
        accumulates=True,
        head="plain",
        head_bytes=_SHIFTED * arch.vocab * length,
    )
    return training.phases(work)


def _more(phases: list[PhaseEstimate], extra: int, name: str) -> list[PhaseEstimate]:
    """Add a component to the phases in which every layer's activations are there."""
    whole = ("loss", "last layer's backward")
    return [
        PhaseEstimate(one.name, (*one.components, Component(name, extra))) if one.name in whole else one
        for one in phases
    ]


def _scaled(one: PhaseEstimate, name: str, share: float) -> PhaseEstimate:
    return PhaseEstimate(
        one.name,
        tuple(Component(c.name, round(c.bytes * share)) if c.name == name else c for c in one.components),
    )
