"""Sentences about requests to runs and their deletion, the same on the command line and on the screens."""

from collections.abc import Iterable

from stackllama_engine.contract.requests import Ask
from stackllama_engine.contract.run_dir import RunDir, State

from .sanitise import one_line

ASKED_TO_STOP = "asked to save and stop"
READ_ONLY = "read-only: this run was started by another trainer"
NOTHING_DAMAGED = "nothing is damaged"

_PENDING = {
    "save": "save a checkpoint",
    "sample": "sample held-out prompts",
    "pause": "pause",
    "continue": "continue",
    "stop": "save and stop",
}
_PROMISES: dict[Ask, str] = {
    "save": "will save a checkpoint after the current step",
    "sample": "will sample held-out prompts after the current step",
    "pause": "will pause after the current step; GPU memory stays allocated",
    "continue": "continues",
    "set": "will use {change} from the next step on",
}


def promise(run_id: str, request: Ask, change: str | None = None) -> str:
    """Say what a run will do about a request, in a sentence without its period.

    Args:
        run_id: the run that serves it.
        request: what was asked for.
        change: ``key=value`` of ``set``.
    """
    return f"{run_id} {_PROMISES[request].format(change=one_line(change or '').strip())}"


def pending_requests(run: RunDir) -> list[str]:
    """Return what a run was asked for and has not done yet, in words; read from its ``control/``."""
    pending: list[str] = []
    for name in run.requests():
        key = name.removeprefix("set-")
        words = f"set {one_line(key)}" if key != name else _PENDING.get(name)
        pending += [words] if words else []
    return pending


def asked_to_stop(*, queued: bool) -> str:
    """Say what a run was asked for; one that is queued has nothing to save."""
    return "asked to stop" if queued else ASKED_TO_STOP


def already_ended(run_id: str, state: State) -> str:
    """Say that there is nothing to stop, in a sentence without its period."""
    return f"{run_id} has already ended: {state.phase}"


def delete_question(run_id: str) -> str:
    """Return the question before a run is deleted."""
    return f"Delete {run_id} permanently?"


def dependents(run_ids: Iterable[str]) -> str:
    """Name the runs that need the files of a run that is to be deleted."""
    return f"Runs that depend on it and can no longer be resumed: {', '.join(run_ids)}"
