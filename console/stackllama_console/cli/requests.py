"""``runs save``, ``sample``, ``pause``, ``continue``, ``set``: asked of a run that trains; none waits for it."""

import argparse
from typing import cast

from stackllama_engine.contract.errors import ExitCode
from stackllama_engine.contract.requests import Ask
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.launch.reconcile import ask as ask_run

from ..run_facts import facts
from ..sanitise import one_line
from .output import PROGRAM, say, show_json
from .runs import find

_PROMISE: dict[Ask, str] = {
    "save": "will save at its next step.",
    "sample": "will answer a few held-out questions after this step.",
    "pause": "will pause after this step; its GPU memory stays held. Go on: {program} runs continue {run}",
    "continue": "goes on.",
    "set": "{change} from its next step on.",
}


def ask(arguments: argparse.Namespace) -> int:
    """Put the request down for the run, or for a pipeline's stage at work."""
    what = cast("Ask", arguments.ask)
    change = getattr(arguments, "change", None)
    asked = ask_run(find(Home(arguments.home), arguments.run), what, change)
    if arguments.json:
        show_json(facts(asked, asked.read_state()) | {"asked": what} | ({"change": change} if change else {}))
    promise = _PROMISE[what].format(program=PROGRAM, run=asked.id, change=one_line(change or ""))
    say(f"{asked.id}: {promise}")
    return ExitCode.DONE
