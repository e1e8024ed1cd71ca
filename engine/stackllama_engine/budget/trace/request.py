"""What a trace is asked, and what it answers; torch-free, shared by both sides of the pipe."""

from typing import Any

from msgspec import Struct

from ...contract.stages import Stage


class Request(Struct, frozen=True, kw_only=True):
    """One recipe and the configurations of its models."""

    stage: Stage
    recipe: dict[str, Any]
    """Its keys, as in a recipe file."""
    config: dict[str, Any]
    """``config.json`` of ``model_name_or_path``, ``dtype`` included."""
    judge: dict[str, Any] | None = None
    """``config.json`` of a reward model of its own; None: an adapter on the policy's base."""


class Trace(Struct, frozen=True, kw_only=True):
    """Allocated bytes on one GPU, as the operations of a step make them."""

    phases: dict[str, int]
    peak: str
    allocated: int
    seconds: float
    """That the trace itself took, imports apart."""
    versions: dict[str, str]
    """Of the libraries whose code was followed."""
