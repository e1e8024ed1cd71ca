"""Faster paths that a person left out by ``STACKLLAMA_LEAVE_OUT``, to measure or to rule out what each does.

A recipe says what is computed; this says only how fast, so it is an environment variable and in no recipe.
"""

import os

from ..contract.errors import UsageError

VARIABLE = "STACKLLAMA_LEAVE_OUT"
NAMES = ("casts", "lora", "graph", "head", "pack", "varlen")
"""PEFT's input casts stay; LoRA by PEFT's own operations; decoding without a CUDA graph; the output head in the CPU's
chunks; padded rows with masks; packed rows with masks."""


def left_out(name: str) -> bool:
    """Return whether a path of `NAMES` is left out.

    Raises:
        UsageError: the variable holds a name that does not exist.
    """
    assert name in NAMES, name
    asked = [each.strip() for each in os.environ.get(VARIABLE, "").split(",") if each.strip()]
    if unknown := [each for each in asked if each not in NAMES]:
        raise UsageError(f"Environment variable {VARIABLE}: `{unknown[0]}` is none of {', '.join(NAMES)}.")
    return name in asked
