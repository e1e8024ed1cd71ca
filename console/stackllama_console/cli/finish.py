"""The end of a followed run: what is printed on stdout, and the exit code."""

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
    """One JSON document, or for a finished pipeline its table; returns the run's exit code.

    ``notes``: how keys of its recipe were read, for the document.
    """
    if state.stage is not Stage.PIPELINE:
        if as_json:
            show_json(facts(run, state) | {"notes": notes})
        return exit_code(state)

    found = pipeline_facts(home, run, state)
    if as_json:
        show_json(found | {"notes": notes})
    elif state.phase == "finished":
        say()
        _show_table(found)
        _show_samples(found)
    return exit_code(state)


def _show_table(found: dict[str, Any]) -> None:
    heading, *lines = table(found)
    sys.stdout.write(paint(heading, "bold", sys.stdout) + "\n")
    for line in lines:
        show(line)


def _show_samples(found: dict[str, Any]) -> None:
    for heading, scores, text in samples(found):
        if not heading.startswith(" "):
            show()
        sys.stdout.write(paint(heading, "bold", sys.stdout) + f"  {scores}".rstrip() + "\n")
        for line in text_lines(text):
            show(f"    {line}".rstrip())
