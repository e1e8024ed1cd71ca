"""Messages between the chat generator and its client: one JSON object per line, both ways.

::

    in    {"id": 1, "prompt": "How …?", "which": ["base", "tuned"], "max_new_tokens": 128, "temperature": 1, "seed": 0,
           "system": "Answer briefly."}                                "system" may be left out
          {"cancel": 1}
    out   {"ready": true, "sides": ["base", "tuned"], "model": …}      first, or {"error": …} and an exit code
          {"id": 1, "which": "base", "text": "a piece"}                as it is generated
          {"id": 1, "which": "base", "done": true, "tokens": 21, "seconds": 0.4, "ended": true, "cancelled": false,
           "reward": 1.5}                                              null where nothing scores it
          {"id": 1, "error": "…"}                                      instead of the rest of that response

The generator ends when its stdin does, whatever it is doing.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

Side = Literal["base", "tuned"]
SIDES: tuple[Side, ...] = ("base", "tuned")
MAX_LINE = 1 << 20
"""Bytes; a longer line is no valid message."""


class Ask(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt, to which one side after the other responds."""

    id: int
    prompt: Annotated[str, Meta(max_length=100_000)]
    """The question alone; the generator puts the template around it."""
    which: Annotated[list[Side], Meta(min_length=1, max_length=2)] = msgspec.field(default_factory=lambda: [*SIDES])
    max_new_tokens: Annotated[int, Meta(ge=1, le=1 << 16)] = 128
    temperature: Annotated[float, Meta(ge=0, le=100)] = 1.0
    """Below 0.01 sampling is greedy."""
    seed: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0
    """Sampling seed of both sides."""
    system: Annotated[str, Meta(max_length=20_000)] | None = None
    """System prompt in place of the run's own; only in the format ``chat``."""


class Cancel(Struct, frozen=True, forbid_unknown_fields=True):
    """Cancel a prompt; its sides are then done as ``cancelled``."""

    cancel: int


class Ready(Struct, frozen=True, kw_only=True):
    """The model is loaded."""

    ready: Literal[True] = True
    sides: list[Side]
    model: str
    """Name of the base if it is known, else the path of the weights."""
    checkpoint: str | None = None
    """``step-000100``; None: the run's result."""
    device: str = "cpu"
    note: str | None = None
    """Notice for the user, such as why one side is missing."""
    prompt_format: str = "question_answer"
    """Kind of the run's format: ``chat``, ``question_answer`` or ``none``."""
    system: str | None = None
    """The run's own system prompt."""
    rewards: bool = False
    """Whether answers are scored."""
    functions: bool = False
    """Whether reward functions, which the chat does not call, scored the run's responses as well."""


class Delta(Struct, frozen=True, kw_only=True):
    """A piece of a response."""

    id: int
    which: Side
    text: str


class Done(Struct, frozen=True, kw_only=True):
    """One side's response is complete, or was cancelled."""

    id: int
    which: Side
    done: Literal[True] = True
    tokens: int
    seconds: float
    ended: bool
    """Whether it ended with the end-of-sequence token rather than at ``max_new_tokens``."""
    cancelled: bool = False
    reward: float | None = None
    """Score by the reward model of the run's pipeline; None: there is none, or the answer was cancelled."""


class Failure(Struct, frozen=True, kw_only=True):
    """Error of a response; without ``id`` the reason why the generator ends, or that a line was not a request."""

    error: str
    id: int | None = None


Request = Ask | Cancel
Reply = Ready | Delta | Done | Failure


def decode_request(line: bytes) -> Request:
    """Decode a line of stdin.

    Raises:
        msgspec.DecodeError: it is neither of the two.
        UnicodeDecodeError, RecursionError: it is not UTF-8, or nested too deeply.
    """
    fields = msgspec.json.decode(line, type=dict[str, Any])
    return msgspec.convert(fields, Cancel if "cancel" in fields else Ask)


def decode_reply(line: bytes) -> Reply:
    """Decode a line of stdout.

    Raises:
        msgspec.DecodeError: it is none of the four.
        UnicodeDecodeError, RecursionError: it is not UTF-8, or nested too deeply.
    """
    fields = msgspec.json.decode(line, type=dict[str, Any])
    for key, kind in (("ready", Ready), ("error", Failure), ("done", Done)):
        if key in fields:
            return msgspec.convert(fields, kind)
    return msgspec.convert(fields, Delta)
