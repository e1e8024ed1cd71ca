"""Form of a response: a regular expression, JSON, a length."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from .values import per_response


def matches(responses: Sequence[str], pattern: Sequence[str | None] | str) -> list[float | None]:
    """Score 1 where a regular expression is found in a response, else 0.

    Args:
        responses: texts.
        pattern: Python's; anchors and flags belong in it, as in ``(?s)^<think>.*</think>.+$``.
            None or empty, as CSV files hold a missing value: abstain.
    """
    return [
        None if not own else float(re.search(own, response) is not None)
        for response, own in zip(responses, per_response(pattern, responses), strict=True)
    ]


def valid_json(responses: Sequence[str]) -> list[float]:
    """Score 1 where a whole response is JSON (RFC 8259), white space around it aside, else 0."""
    return [float(_is_json(response)) for response in responses]


def target_length(responses: Sequence[str], words: Sequence[float | str | None] | float | str) -> list[float | None]:
    """Score 1 for a response of so many words, falling evenly to 0 for none or twice as many.

    Args:
        responses: texts; words are separated by white space.
        words: above 0, a number or a text that is one, as CSV files hold them. None or blank: abstain.
    """
    return [
        None if (wanted := _number(own)) is None else _nearness(len(response.split()), wanted)
        for response, own in zip(responses, per_response(words, responses), strict=True)
    ]


def _number(words: float | str | None) -> float | None:
    if words is None or (isinstance(words, str) and not words.strip()):
        return None
    try:
        return float(words)
    except ValueError:
        raise ArithmeticError(f"`words` is {words!r}, and must be a number") from None


def _nearness(count: int, wanted: float) -> float:
    if not 0 < wanted < math.inf:
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
