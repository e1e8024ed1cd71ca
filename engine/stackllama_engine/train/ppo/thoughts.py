"""Thoughts of a model that thinks before it answers, between ``<think>`` and ``</think>`` (Qwen3, DeepSeek-R1).

The response opens the thought itself, or the chat template has opened it at the end of the prompt. A length limit that
comes before the end of the thought leaves a response without any answer, for which nothing can be scored.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "<think>", "</think>"
CUT = "val/thoughts_cut_off"
"""Metric: share of all responses whose thought the length limit cuts off."""
_TAIL = 16
"""Tokens at the end of a prompt that may open a thought, whatever its tokenizer."""


class Thought(NamedTuple):
    """Whether a response has a thought, and whether the length limit has cut it off."""

    is_opened: bool
    is_cut_off: bool


def thought_of(prompt: str, response: str, *, ended: bool) -> Thought:
    """Find the thought of a response.

    Args:
        prompt: its end.
        response: with special tokens.
        ended: by a token, not by the length limit.
    """
    in_prompt = prompt.rstrip().endswith(OPEN)
    is_opened = in_prompt or OPEN in response
    is_closed = CLOSE in (response if in_prompt else response.partition(OPEN)[2])
    return Thought(is_opened, is_opened and not is_closed and not ended)


def thoughts_of(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    ended: Sequence[bool],
) -> list[Thought]:
    """Find the thoughts of token rows, one per response."""
    rows = zip(prompts, responses, ended, strict=True)
    return [
        thought_of(str(tokenizer.decode([*prompt[-_TAIL:]])), str(tokenizer.decode([*response])), ended=one)
        for prompt, response, one in rows
    ]
