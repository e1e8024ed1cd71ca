"""What the chat generator and whoever talks to it say to each other: one JSON object a line, both ways.

::

    in    {"id": 1, "prompt": "How …?", "which": ["base", "tuned"], "max_new_tokens": 128, "temperature": 1, "seed": 0}
          {"cancel": 1}
    out   {"ready": true, "sides": ["base", "tuned"], "model": …}      first, or {"error": …} and an exit code
          {"id": 1, "which": "base", "text": "a piece"}                as it is made
          {"id": 1, "which": "base", "done": true, "tokens": 21, "seconds": 0.4, "ended": true, "cancelled": false}
          {"id": 1, "error": "…"}                                      instead of what is left of that answer

The generator ends when its stdin does, whatever it is doing.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

Side = Literal["base", "tuned"]
SIDES: tuple[Side, ...] = ("base", "tuned")
MAX_LINE = 1 << 20
"""Bytes; a longer line is neither a question nor an answer."""


class Ask(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question, answered by one side after the other."""

    id: int
    prompt: Annotated[str, Meta(max_length=100_000)]
    """The question alone; the template is put around it by the generator."""
    which: Annotated[list[Side], Meta(min_length=1, max_length=2)] = msgspec.field(default_factory=lambda: [*SIDES])
    max_new_tokens: Annotated[int, Meta(ge=1, le=1 << 16)] = 128
    temperature: Annotated[float, Meta(ge=0, le=100)] = 1.0
    """Below 0.01 the likeliest token is taken each time."""
    seed: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0
    """Both sides draw with the same noise."""


class Cancel(Struct, frozen=True, forbid_unknown_fields=True):
    """Do not go on with a question; its sides are then done as ``cancelled``."""

    cancel: int


class Ready(Struct, frozen=True, kw_only=True):
    """The model is loaded."""

    ready: Literal[True] = True
    sides: list[Side]
    model: str
    """Of the base where it is known, else where the weights came from."""
    checkpoint: str | None = None
    """``step-000100``; None: the run's result."""
    device: str = "cpu"
    note: str | None = None
    """What a person should know, such as why one side is missing."""


class Delta(Struct, frozen=True, kw_only=True):
    """A piece of an answer."""

    id: int
    which: Side
    text: str


class Done(Struct, frozen=True, kw_only=True):
    """One side's answer is complete, or was cancelled."""

    id: int
    which: Side
    done: Literal[True] = True
    tokens: int
    seconds: float
    ended: bool
    """Whether it ended with the end token rather than at ``max_new_tokens``."""
    cancelled: bool = False


class Failure(Struct, frozen=True, kw_only=True):
    """Why a question was not answered; without ``id`` why the generator ends, or that a line was no request."""

    error: str
    id: int | None = None


Request = Ask | Cancel
Reply = Ready | Delta | Done | Failure


def decode_request(line: bytes) -> Request:
    """A line of stdin.

    Raises:
        msgspec.DecodeError: it is neither of the two.
        UnicodeDecodeError, RecursionError: it is no JSON that anybody would send.
    """
    fields = msgspec.json.decode(line, type=dict[str, Any])
    return msgspec.convert(fields, Cancel if "cancel" in fields else Ask)


def decode_reply(line: bytes) -> Reply:
    """A line of stdout.

    Raises:
        msgspec.DecodeError: it is none of the four.
        UnicodeDecodeError, RecursionError: it is no JSON that anybody would send.
    """
    fields = msgspec.json.decode(line, type=dict[str, Any])
    for key, kind in (("ready", Ready), ("error", Failure), ("done", Done)):
        if key in fields:
            return msgspec.convert(fields, kind)
    return msgspec.convert(fields, Delta)
