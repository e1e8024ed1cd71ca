"""A response as text."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ...contract.prompt_format import Message


class ResponseText(NamedTuple):
    """A response as text, as reward model and functions read it."""

    question: str
    text: str
    ended: bool
    """True: it ended with an end token."""
    messages: list[Message] | None = None
    """The conversation that is the prompt, where the source has one."""
    columns: Mapping[str, Any] = MappingProxyType({})
    """Further columns of the prompt's row."""
