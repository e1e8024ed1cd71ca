"""Request and reply of a trace; torch-free, shared by both sides of the pipe."""

from typing import Any

from msgspec import Struct

from ...contract.stages import Stage


class Request(Struct, frozen=True, kw_only=True):
    """A recipe and the configurations of its models."""

    stage: Stage
    recipe: dict[str, Any]
    """Keys and values, as in a recipe file."""
    config: dict[str, Any]
    """``config.json`` of ``model_name_or_path``, ``dtype`` included."""
    reward_model: dict[str, Any] | None = None
    """``config.json`` of a separate reward model; None: an adapter on the policy's base."""


class Trace(Struct, frozen=True, kw_only=True):
    """Allocated bytes on one GPU, from the operations of a step."""

    phases: dict[str, int]
    peak: str
    allocated: int
    seconds: float
    """Duration of the trace, without imports."""
    versions: dict[str, str]
    """Versions of the traced libraries."""
