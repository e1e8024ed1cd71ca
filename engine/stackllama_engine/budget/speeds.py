"""Training speed in each base precision, as measured; docs/measurements/precision.md has the runs.

Only what was measured is here: 4-bit bases, and torchao's weight-only int8 and int4, were not.
"""

TOKENS_PER_SECOND: dict[str, int] = {"bf16": 50_000, "int8": 21_000}
"""Tokens per second of one training step, by base precision."""
MEASURED = (
    "reward training of a 0.9B model, 16 pairs of 1,024 tokens, no checkpointing, on one H200 "
    "(torch 2.11+cu130, transformers 5.23, peft 0.21.2, bitsandbytes 0.50.2); random weights have no outliers, which "
    "cost LLM.int8() more"
)
"""What was measured, and where."""


def speed_of(precision: str) -> str:
    """Return a precision's speed in words, relative to bf16."""
    speed = TOKENS_PER_SECOND.get(precision)
    if speed is None:
        return "not measured"
    share = TOKENS_PER_SECOND["bf16"] / speed
    return f"{speed:,} tokens/s" + (f", {share:.1f} times slower than bf16" if share > 1 else "")
