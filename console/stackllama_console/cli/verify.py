"""``runs verify``: read every checkpoint back and list which can be resumed from."""

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
    """Print one line per checkpoint, oldest first; return 1 when one is damaged, or there is none."""
    run = find(Home(arguments.home), arguments.run)
    _refuse_pipeline(run)
    checks = [_checked(run, path.name) for path in sealed(run.checkpoints)]
    good = [check["checkpoint"] for check in checks if check["ok"]]
    if arguments.json:
        show_json({"run": run.id, "checkpoints": checks, "resumes_from": good[-1] if good else None})
    else:
        for check in checks:
            word = paint("ok", "green", sys.stdout) if check["ok"] else paint("damaged", "red", sys.stdout)
            why = "" if check["ok"] else f"  {one_line(check['problem'])}"
            sys.stdout.write(f"{check['checkpoint']}  {word}{why}\n")
    if not good:
        say(f"{run.id} has no {'valid ' if checks else ''}checkpoint; resume would restart from step 0.")
    elif len(good) < len(checks):
        say(f"{run.id}: {len(checks) - len(good)} of {len(checks)} damaged; resume would start from {good[-1]}.")
    return ExitCode.DONE if good and len(good) == len(checks) else ExitCode.FAILED


def _checked(run: RunDir, name: str) -> dict[str, Any]:
    path = run.checkpoints / name
    reason = problem(path)
    return {"checkpoint": name, "step": step_of(path), "ok": reason is None, "problem": reason}


def _stage(run: RunDir) -> Stage | None:
    try:
        return run.read_state().stage
    except DamagedError:  # its checkpoints can be verified all the same
        return stage_of(run)


def _refuse_pipeline(run: RunDir) -> None:
    if _stage(run) is Stage.PIPELINE:
        ids = ", ".join(child_id(run.id, child.suffix) for child in CHILDREN if child.stage is not Stage.MERGE)
        raise UsageError(f"{run.id} is a pipeline; its checkpoints are those of its stages: {ids}.")
