"""``runs save``, ``sample``, ``pause``, ``continue``, ``set``: requests to a running run; none waits for it."""

import argparse
from typing import cast

from stackllama_engine.contract.errors import ExitCode
from stackllama_engine.contract.requests import Ask
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.launch.run_requests import ask as ask_run

from ..request_texts import promise
from ..run_facts import facts
from .output import PROGRAM, say, show_json
from .runs import find


def ask(arguments: argparse.Namespace) -> int:
    """Write the request for the run, or for a pipeline's active stage."""
    request = cast("Ask", arguments.ask)
    change = getattr(arguments, "change", None)
    run = ask_run(find(Home(arguments.home), arguments.run), request, change)
    if arguments.json:
        show_json(facts(run, run.read_state()) | {"asked": request} | ({"change": change} if change else {}))
    undo = f" Continue: {PROGRAM} runs continue {run.id}" if request == "pause" else ""
    say(f"{promise(run.id, request, change)}.{undo}")
    return ExitCode.DONE
