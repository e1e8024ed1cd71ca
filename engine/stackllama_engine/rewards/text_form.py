"""Form of a response: a regular expression, JSON, a length."""

import json
import re
from collections.abc import Sequence
from typing import Any

from .values import per_response


def matches(responses: Sequence[str], pattern: Sequence[str | None] | str) -> list[float | None]:
    """Score 1 where a regular expression is found in a response, else 0.

    Args:
        responses: texts.
        pattern: Python's; anchors and flags belong in it, as in ``(?s)^<think>.*</think>.+$``. None: abstain.
    """
    return [
        None if own is None else float(re.search(own, response) is not None)
        for response, own in zip(responses, per_response(pattern, responses), strict=True)
    ]


def valid_json(responses: Sequence[str]) -> list[float]:
    """Score 1 where a whole response is JSON (RFC 8259), white space around it aside, else 0."""
    return [float(_is_json(response)) for response in responses]


def target_length(responses: Sequence[str], words: Sequence[float | None] | float) -> list[float | None]:
    """Score 1 for a response of so many words, falling evenly to 0 for none or twice as many.

    Args:
        responses: texts; words are separated by white space.
        words: above 0. None: abstain.
    """
    return [
        None if own is None else _nearness(len(response.split()), own)
        for response, own in zip(responses, per_response(words, responses), strict=True)
    ]


def _nearness(count: int, wanted: float) -> float:
    if wanted <= 0:
        raise ArithmeticError(f"`words` is {wanted:g}, and must be above 0")
    return max(0.0, 1.0 - abs(count - wanted) / wanted)


def _is_json(text: str) -> bool:
    def refuse(constant: str) -> Any:  # Python reads NaN and Infinity, which are no JSON
        raise ValueError(constant)

    try:
        json.loads(text, parse_constant=refuse, parse_int=str)  # however long a number is
    except (ValueError, RecursionError):
        return False
    return True
