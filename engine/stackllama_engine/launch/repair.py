"""Repair of a run with damaged records, from its other files; nothing is guessed.

Stage: the recipe's first line, else the command in ``launch.json``, else the name that a launch gave.
Attempt: the newest folder.
Outcome: that attempt's ``end`` event, else `lost`. Every unreadable file is kept beside the new one.
"""

import os
import re
import time
from pathlib import Path

from msgspec.structs import replace

from ..contract.errors import DamagedError, RefusedError
from ..contract.events import Event, EventReader
from ..contract.run_dir import Home, Launch, RunDir, State
from ..contract.run_files import read_file
from ..contract.stages import Stage
from .attempt_outcome import from_end_event, last_log_lines, on_resume
from .ownership import check_run
from .processes import kill_run_processes
from .run_location import elsewhere_of_damaged
from .slurm_queue import SLURM_FILE, job_of

RECORDS = ("launch.json", "result.json", "lineage.json", SLURM_FILE)
"""Records besides ``state.json``: a run works without them."""
_HEADER = re.compile(rb"# stage: ([a-z]+)\r?\n")
_HEAD_BYTES = 1 << 20
_GIVEN_NAME = re.compile(r"([a-z]+)-\d{8}-\d{6}-[0-9a-f]{4}")
_PIPELINE_MODULE = "stackllama_engine.launch.pipeline"
_STAGE_MODULE = "stackllama_engine.train"


def repair(home: Home, run_id: str) -> list[str]:
    """Rebuild a damaged run, so that it can be listed, resumed and removed again.

    Returns:
        the repairs, one sentence each; empty where nothing was damaged.

    Raises:
        UsageError: no such run.
        RefusedError: it is alive (its supervisor rewrites ``state.json`` itself), no file tells its stage, or the
            directory cannot be written or is another user's (:mod:`.ownership`).
    """
    run = home.run(run_id)
    check_run(run)
    try:
        lock = run.acquire_lock()
        try:
            return _repair(run)
        finally:
            run.release_lock(lock)
    except OSError as error:
        raise RefusedError(f"Run `{run.id}` could not be repaired: {error}.") from None


def stage_of(run: RunDir) -> Stage | None:
    """Return the stage of a run with an unreadable state, if another file tells it."""
    return _stage_of_recipe(run) or _stage_of_launch(run) or _stage_of_name(run)


def _repair(run: RunDir) -> list[str]:
    done: list[str] = []
    try:
        run.read_state()
    except DamagedError:
        done.append(_rebuild(run))
    for name in RECORDS:
        if _is_damaged(run, name):
            done.append(f"{name} could not be read; it was renamed to {_set_aside(run.path / name).name}.")
    return done


def _rebuild(run: RunDir) -> str:
    stage = stage_of(run)
    if stage is None:
        raise RefusedError(
            f"No file of {run.path} names the stage of run `{run.id}`. Make `# stage: sft` (or reward, ppo, merge, "
            f"pipeline) the first line of its recipe.yaml, or remove it: `stackllama-console runs rm {run.id}`."
        )
    state = _state(run, stage)
    _refuse_elsewhere(run)
    killed = kill_run_processes(run.path)
    kept = ""
    if os.path.lexists(run.path / "state.json"):
        kept = f" The damaged file was renamed to {_set_aside(run.path / 'state.json').name}."
    run.write_state(state)
    ended = f" {killed} of its processes were still running and were killed." if killed else ""
    return f"state.json was rebuilt: {stage}, {state.phase}, attempt {state.attempt}.{kept}{ended}"


def _state(run: RunDir, stage: Stage) -> State:
    folders = run.attempt_dirs()
    events = list(EventReader(folders[-1] / "events.jsonl").read_what_can_be()) if folders else []
    launch = _launch(run)
    state = State(
        stage=stage,
        phase="lost",
        attempt=int(folders[-1].name) if folders else 0,
        created=run.touched() or (launch.created if launch else time.time()),
        started=launch.created if launch else events[0].time if events else None,
        ended=events[-1].time if events else time.time(),
        cause=f"state.json was damaged, and no other file records how the run ended. {on_resume(run, stage)}",
        last_lines=last_log_lines(folders[-1] / "log.txt") if folders else [],
    )
    return _ended(state, next((event for event in reversed(events) if event.kind == "end"), None))


def _ended(state: State, end: Event | None) -> State:
    if end is None:
        return state
    outcome = from_end_event(end)
    return replace(state, phase=outcome.phase, exit_code=outcome.exit_code, cause=outcome.cause, ended=end.time)


def _refuse_elsewhere(run: RunDir) -> None:
    """Refuse a run without an ``end`` event on another machine, where it may be alive."""
    if there := elsewhere_of_damaged(run):
        raise RefusedError(
            f"Run `{run.id}` was started on {there.host} and may be alive there. Repair it on that machine; if it "
            f"is gone, remove {run.path / 'launch.json'} first."
        )


def _launch(run: RunDir) -> Launch | None:
    try:
        return run.read_launch()
    except DamagedError:
        return None


def _is_damaged(run: RunDir, name: str) -> bool:
    if not os.path.lexists(run.path / name):
        return False
    try:
        if name == "launch.json":
            run.read_launch()
        elif name == SLURM_FILE:
            job_of(run)
        else:
            run.read_json(name)
    except DamagedError:
        return True
    return False


def _set_aside(path: Path) -> Path:
    number = 1
    while os.path.lexists(kept := path.with_name(f"{path.name}.damaged-{number}")):
        number += 1
    return path.rename(kept)


def _stage_of_recipe(run: RunDir) -> Stage | None:
    try:
        match = _HEADER.match(read_file(run.recipe_file, _HEAD_BYTES))
    except OSError:
        return None
    return _stage(match[1].decode()) if match else None


def _stage_of_launch(run: RunDir) -> Stage | None:
    launch = _launch(run)
    argv = launch.argv if launch else []
    if _PIPELINE_MODULE in argv:
        return Stage.PIPELINE
    if _STAGE_MODULE in argv[:-1]:
        return _stage(argv[argv.index(_STAGE_MODULE) + 1])
    return None


def _stage_of_name(run: RunDir) -> Stage | None:
    match = _GIVEN_NAME.fullmatch(run.id)
    return _stage(match[1]) if match else None


def _stage(text: str) -> Stage | None:
    return Stage(text) if text in set(Stage) else None
