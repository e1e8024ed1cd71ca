"""What a function gets besides the responses."""

from collections.abc import Sequence
from typing import Any


def per_response(value: Any, responses: Sequence[str]) -> Sequence[Any]:
    """Return one value per response: a column as it is, an option as often as there are responses."""
    return value if isinstance(value, list | tuple) else [value] * len(responses)
