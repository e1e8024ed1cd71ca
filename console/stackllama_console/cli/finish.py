"""End of a followed run: its output on stdout, and the exit code."""

from collections.abc import Sequence

from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage

from .output import say, show_json
from .run_status import exit_code, facts


def finish(home: Home, run: RunDir, state: State, *, as_json: bool, notes: Sequence[str] = ()) -> int:
    """Print one JSON document, or for a finished pipeline its table; return the run's exit code.

    Args:
        home: the home of the run.
        run: the run that has ended.
        state: its reconciled state.
        as_json: whether to print JSON.
        notes: on how keys of its recipe were read, for the document.
    """
    if state.stage is not Stage.PIPELINE:
        if as_json:
            show_json(facts(run, state) | {"notes": notes})
        return exit_code(state)
    from .report import pipeline_facts, show_samples, show_table

    outcome = pipeline_facts(home, run, state)
    if as_json:
        show_json(outcome | {"notes": notes})
    elif state.phase == "finished":
        say()
        show_table(outcome)
        show_samples(outcome)
    return exit_code(state)
