"""A response as text."""

from collections.abc import Mapping, Sequence
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
    ids: Sequence[int] = ()
    """Its tokens, with the end token if it has one."""
