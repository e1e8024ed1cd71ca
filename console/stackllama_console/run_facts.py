"""Facts of a run that every JSON document about it holds."""

from typing import Any

from stackllama_engine.contract.run_dir import RunDir, State
from stackllama_engine.launch.run_location import elsewhere

from .remote_runs import as_facts


def seconds(state: State) -> float | None:
    """Return how long its newest attempt took, or None while it runs."""
    begin = state.started or state.created
    return max(0.0, state.ended - begin) if state.ended and begin else None


def facts(run: RunDir, state: State) -> dict[str, Any]:
    """Return the outcome as JSON facts."""
    return {
        "run": run.id,
        "stage": state.stage,
        "state": state.phase,
        "exit_code": state.exit_code,
        "cause": state.cause,
        "attempt": state.attempt,
        "seconds": seconds(state),
        "path": str(run.path),
        "elsewhere": as_facts(elsewhere(run, state)),
    }
