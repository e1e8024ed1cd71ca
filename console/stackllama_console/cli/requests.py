"""``runs save``, ``sample``, ``pause``, ``continue``, ``set``: requests to a running run; none waits for it."""

import argparse
from typing import cast

from stackllama_engine.contract.errors import ExitCode
from stackllama_engine.contract.requests import Ask
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.launch.run_requests import ask as ask_run

from ..run_facts import facts
from ..sanitise import one_line
from .output import PROGRAM, say, show_json
from .runs import find

_PROMISE: dict[Ask, str] = {
    "save": "will save a checkpoint at its next step.",
    "sample": "will sample responses to a few held-out prompts after this step.",
    "pause": "will pause after this step; GPU memory stays allocated. Continue: {program} runs continue {run}",
    "continue": "continues.",
    "set": "{change} from its next step on.",
}


def ask(arguments: argparse.Namespace) -> int:
    """Write the request for the run, or for a pipeline's active stage."""
    request = cast("Ask", arguments.ask)
    change = getattr(arguments, "change", None)
    run = ask_run(find(Home(arguments.home), arguments.run), request, change)
    if arguments.json:
        show_json(facts(run, run.read_state()) | {"asked": request} | ({"change": change} if change else {}))
    promise = _PROMISE[request].format(program=PROGRAM, run=run.id, change=one_line(change or ""))
    say(f"{run.id}: {promise}")
    return ExitCode.DONE
