"""Published rules of thumb: a first guess to show beside the estimate, never the estimate.

Source of all of them: https://huggingface.co/blog/stackllama (bf16: 2 bytes per parameter, Adam: 8 bytes per
parameter, (2 + 8) · 7B = 70 GB, LoRA on int8: 1.2 to 1.4 GB per billion parameters).
"""

from msgspec import Struct

BYTES_PER_PARAMETER = {"fp32": 4, "bf16": 2, "int8": 1}
ADAM_BYTES = 8
INT8_LORA_GB = (1.2, 1.4)
"""Per billion parameters; measured to hold for batch 1 with reentrant checkpointing."""


class Rule(Struct, frozen=True):
    """A rule applied to a model, in bytes."""

    name: str
    low: int
    high: int


def weight_bytes(parameters: int, precision: str) -> int:
    """Return the weights alone, in ``fp32`` (4 bytes per parameter), ``bf16`` (2) or ``int8`` (1)."""
    return parameters * BYTES_PER_PARAMETER[precision]


def adam_bytes(parameters: int) -> int:
    """Return Adam's two moments in float32: 8 bytes per trained parameter."""
    return ADAM_BYTES * parameters


def full_bf16(parameters: int) -> int:
    """Return full training in bf16: (2 + 8) bytes per parameter, 70 GB for 7B."""
    return weight_bytes(parameters, "bf16") + adam_bytes(parameters)


def int8_lora(parameters: int) -> tuple[int, int]:
    """Return LoRA on an int8 base: 1.2 to 1.4 GB per billion parameters, by batch size and sequence length."""
    low, high = (round(parameters * gigabytes) for gigabytes in INT8_LORA_GB)
    return low, high


def rules_for(parameters: int) -> list[Rule]:
    """Apply every rule to a model of this size."""
    named = [(f"weights, {name}", weight_bytes(parameters, name)) for name in BYTES_PER_PARAMETER]
    named += [
        ("Adam", adam_bytes(parameters)),
        ("full training in bf16: (2 + 8) bytes/parameter", full_bf16(parameters)),
    ]
    low, high = int8_lora(parameters)
    return [*(Rule(name, count, count) for name, count in named), Rule("int8 + LoRA: 1.2–1.4 GB/B", low, high)]
