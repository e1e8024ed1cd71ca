"""End of a followed run: its output on stdout, and the exit code."""

import sys
from collections.abc import Sequence
from typing import Any

from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage

from ..results import pipeline_facts, samples, table, text_lines
from ..run_facts import facts
from .output import paint, say, show, show_json
from .run_status import exit_code


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

    outcome = pipeline_facts(home, run, state)
    if as_json:
        show_json(outcome | {"notes": notes})
    elif state.phase == "finished":
        say()
        _show_table(outcome)
        _show_samples(outcome)
    return exit_code(state)


def _show_table(outcome: dict[str, Any]) -> None:
    heading, *lines = table(outcome)
    sys.stdout.write(paint(heading, "bold", sys.stdout) + "\n")
    for line in lines:
        show(line)


def _show_samples(outcome: dict[str, Any]) -> None:
    for heading, scores, text in samples(outcome):
        if not heading.startswith(" "):
            show()
        sys.stdout.write(paint(heading, "bold", sys.stdout) + f"  {scores}".rstrip() + "\n")
        for line in text_lines(text):
            show(f"    {line}".rstrip())
