"""The end of a followed run: what is printed on stdout, and the exit code."""

from collections.abc import Sequence

from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage

from .output import say, show_json
from .run_status import exit_code, facts


def finish(home: Home, run: RunDir, state: State, *, as_json: bool, notes: Sequence[str] = ()) -> int:
    """One JSON document, or for a finished pipeline its table; returns the run's exit code.

    ``notes``: how keys of its recipe were read, for the document.
    """
    if state.stage is not Stage.PIPELINE:
        if as_json:
            show_json(facts(run, state) | {"notes": notes})
        return exit_code(state)
    from .report import pipeline_facts, show_samples, show_table

    found = pipeline_facts(home, run, state)
    if as_json:
        show_json(found | {"notes": notes})
    elif state.phase == "finished":
        say()
        show_table(found)
        show_samples(found)
    return exit_code(state)
