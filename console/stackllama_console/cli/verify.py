"""``runs verify``: read every checkpoint back and say which can be resumed from."""

import argparse
import sys
from typing import Any

from stackllama_engine.contract.checkpoints import problem, sealed, step_of
from stackllama_engine.contract.children import CHILDREN, child_id
from stackllama_engine.contract.errors import DamagedError, ExitCode, UsageError
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.repair import stage_of

from ..sanitise import one_line
from .output import paint, say, show_json
from .runs import find


def verify(arguments: argparse.Namespace) -> int:
    """One line a checkpoint, oldest first; ends with 1 when one of them does not verify, or there is none."""
    run = find(Home(arguments.home), arguments.run)
    _refuse_pipeline(run)
    found = [_checked(run, path.name) for path in sealed(run.checkpoints)]
    good = [each["checkpoint"] for each in found if each["ok"]]
    if arguments.json:
        show_json({"run": run.id, "checkpoints": found, "resumes_from": good[-1] if good else None})
    else:
        for each in found:
            word = paint("ok", "green", sys.stdout) if each["ok"] else paint("damaged", "red", sys.stdout)
            why = "" if each["ok"] else f"  {one_line(each['problem'])}"
            sys.stdout.write(f"{each['checkpoint']}  {word}{why}\n")
    if not good:
        say(f"{run.id} has no checkpoint{' that verifies' if found else ''}: resuming it would begin at step 0.")
    elif len(good) < len(found):
        say(f"{run.id}: {len(found) - len(good)} of {len(found)} damaged; resuming it would begin with {good[-1]}.")
    return ExitCode.DONE if good and len(good) == len(found) else ExitCode.FAILED


def _checked(run: RunDir, name: str) -> dict[str, Any]:
    path = run.checkpoints / name
    reason = problem(path)
    return {"checkpoint": name, "step": step_of(path), "ok": reason is None, "problem": reason}


def _stage(run: RunDir) -> Stage | None:
    try:
        return run.read_state().stage
    except DamagedError:  # its checkpoints can be looked at all the same
        return stage_of(run)


def _refuse_pipeline(run: RunDir) -> None:
    if _stage(run) is Stage.PIPELINE:
        ids = ", ".join(child_id(run.id, child.suffix) for child in CHILDREN if child.stage is not Stage.MERGE)
        raise UsageError(f"{run.id} is a pipeline; its checkpoints are those of its stages: {ids}.")
