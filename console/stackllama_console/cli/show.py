"""``runs show``: everything about one run that fits on a screen, and the next steps."""

import sys
import time
from typing import Any

from msgspec import to_builtins

from stackllama_engine.contract.errors import DamagedError, ExitCode, StageError, UsageError
from stackllama_engine.contract.history import History
from stackllama_engine.contract.labels import read_labels
from stackllama_engine.contract.metrics import headline_names
from stackllama_engine.contract.prompt_format import PROMPT_FORMAT_FILE, read_prompt_format
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.run_files import why_unreadable
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.repair import stage_of
from stackllama_engine.launch.slurm_queue import job_of

from ..pipelines import still_running
from ..readings import (
    checkpoint_steps,
    last_log_lines,
    measured_peaks,
    read_launch,
    read_result,
    recipe_differences,
)
from ..remote_runs import elsewhere_text
from ..results import pipeline_facts, plain_value, result_lines, table
from ..run_facts import facts, seconds
from ..sanitise import log_line, one_line, sanitise
from ..units import cut, duration, number
from .output import PROGRAM, paint, show, show_fields, show_json, width
from .run_status import COLOURS, DAMAGED, next_steps
from .tail import Tail

_METRICS = 12


def show_damaged(run: RunDir, reason: str, *, as_json: bool) -> int:
    """Print what is known of a run whose state cannot be read."""
    steps = [f"{PROGRAM} runs repair {run.id}", f"{PROGRAM} runs rm {run.id}"]
    if as_json:
        facts = {"run": run.id, "stage": stage_of(run), "state": DAMAGED, "cause": reason, "path": str(run.path)}
        show_json(facts | {"checkpoints": checkpoint_steps(run), "next": steps})
        return ExitCode.DONE
    sys.stdout.write(f"{paint(run.id, 'bold', sys.stdout)}  {paint(DAMAGED, COLOURS[DAMAGED], sys.stdout)}\n")
    fields = [("stage", str(stage_of(run) or "not known")), ("cause", one_line(reason))]
    if checkpoints := checkpoint_steps(run):
        fields.append(("checkpoints", ", ".join(map(str, checkpoints[-8:]))))
    show_fields([*fields, ("directory", str(run.path))])
    _section("next", steps)
    return ExitCode.DONE


def show_one(home: Home, run: RunDir, state: State, *, as_json: bool) -> int:
    """Print a run; ``state`` is the reconciled one."""
    tail = Tail(run, run.id, state.stage)
    for _ in tail.read():
        pass
    history, bad_lines, errors = tail.history, tail.bad_lines, tail.errors
    recipe, problem = _recipe(run, state)
    errors += [error for error in (read_result(run)[1], read_launch(run)[1]) if error]
    if as_json:
        show_json(_document(run, state, history, bad_lines, recipe) | {"damaged": errors})
        return ExitCode.DONE
    heading = paint(state.phase, COLOURS[state.phase], sys.stdout)
    sys.stdout.write(f"{paint(run.id, 'bold', sys.stdout)}  {heading}\n")
    show_fields(_fields(run, state, history, bad_lines))
    _section(
        "recipe, values that are not the default",
        [f"{key}: {plain_value(value)}" for key, value in recipe.items()] or [problem],
    )
    _section("damaged", [one_line(error) for error in errors])
    _section("stages", _stages(home, run, state))
    _section("result", result_lines(run, state.stage))
    _section("metrics, first → last", _metrics(state, history))
    _section("health", [one_line(finding.message) for finding in history.findings.values()])
    _section("notices", [one_line(message) for message in history.health[-6:]])
    _section("last lines of its log", _log(run, state))
    _section("next", next_steps(run, state))
    return ExitCode.DONE


def _recipe(run: RunDir, state: State) -> tuple[dict[str, Any], str]:
    try:
        return recipe_differences(run, state.stage), "every value is the default"
    except UsageError as error:  # a damaged recipe must not hide the state
        return {}, f"cannot be read: {error}"


def _fields(run: RunDir, state: State, history: History, bad_lines: int) -> list[tuple[str, str]]:
    took = seconds(state)
    fields = [("stage", str(state.stage)), *_labels(run)]
    if state.cause and state.phase != "finished":
        fields.append(("cause", one_line(state.cause)))
    if there := elsewhere_text(run, state):
        fields.append(("host", f"{there}; from here it can be followed and stopped"))
    if child := still_running(run, state):
        fields.append(("still running", f"its stage `{child.id}`"))
    if state.exit_code is not None:
        fields.append(("exit code", str(state.exit_code)))
    fields.append(("created", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.created))))
    fields.append(("took", duration(took)) if took is not None else ("running for", _since(state.started)))
    fields += _at(state, history)
    if history.step or history.total_steps:
        fields.append(("step", f"{history.step:,}{f' of {history.total_steps:,}' if history.total_steps else ''}"))
    fields += [("memory", peaks)] if (peaks := measured_peaks(history)) else []
    steps = checkpoint_steps(run)
    if steps:
        fields.append(("checkpoints", ", ".join(map(str, steps[-8:]))))
    if state.attempt > 1:
        fields.append(("attempt", str(state.attempt)))
    fields += _origin(run)
    if bad_lines:
        fields.append(("unreadable", f"{bad_lines} lines of its events"))
    return [*fields, ("directory", str(run.path))]


def _at(state: State, history: History) -> list[tuple[str, str]]:
    """Return what an unfinished run is doing, or waits for."""
    if state.waiting:
        return [("at", one_line(state.waiting))]
    if history.phase and not state.has_ended:
        return [("at", f"{one_line(str(history.at))}, last event {_since(history.updated)} ago")]
    return []


def _labels(run: RunDir) -> list[tuple[str, str]]:
    """Return what a person says of it."""
    try:
        labels = read_labels(run)
    except DamagedError as error:
        return [("labels", one_line(str(error)))]
    fields = [("title", labels.title), ("tags", " ".join(labels.tags)), ("note", labels.note)]
    return [(name, one_line(text)) for name, text in fields if text]


def _origin(run: RunDir) -> list[tuple[str, str]]:
    """Return the Slurm job that runs it, and the runs that it was made from."""
    fields: list[tuple[str, str]] = []
    if (job := _slurm_job(run)) is not None:
        fields.append(("Slurm job", one_line(job) or "requested"))
    launch = read_launch(run)[0]
    origin = launch.forked_from if launch else None
    if origin:
        fields.append(("forked from", f"step {origin.step:,} of {one_line(origin.run)}"))
    if parents := [parent for parent in (launch.parents if launch else ()) if origin is None or parent != origin.run]:
        fields.append(("made from", ", ".join(map(one_line, parents))))
    return fields + _prompt_format(run)


def _prompt_format(run: RunDir) -> list[tuple[str, str]]:
    """Return the format that it was trained with, once the run has recorded it."""
    if not (run.path / PROMPT_FORMAT_FILE).is_file():
        return []
    try:
        return [("prompt format", one_line(str(read_prompt_format(run.path))))]
    except StageError as error:  # a damaged file must not hide the state
        return [("prompt format", one_line(str(error)))]


def _slurm_job(run: RunDir) -> str | None:
    """Return its number, empty until Slurm gave one; None: it is no Slurm job."""
    try:
        job = job_of(run)
    except UsageError as error:  # a damaged file must not hide the state
        return str(error)
    return job.id if job else None


def _since(moment: float | None) -> str:
    return duration(time.time() - moment) if moment else "a moment"


def _stages(home: Home, run: RunDir, state: State) -> list[str]:
    return table(pipeline_facts(home, run, state)) if state.stage is Stage.PIPELINE else []


def _metrics(state: State, history: History) -> list[str]:
    names = [name for name in headline_names(state.stage) if name in history.last]
    names = (names + sorted(name for name in history.last if name not in names))[:_METRICS]
    size = max((len(name) for name in names), default=0)
    return [
        f"{name.ljust(size)}  {number(history.first.get(name)):>9} → {number(history.last[name])}" for name in names
    ]


def _log(run: RunDir, state: State) -> list[str]:
    if state.phase not in ("failed", "lost"):
        return []
    try:
        lines = [log_line(line.decode("utf-8", "replace")) for line in last_log_lines(run, 12)]
    except OSError as error:  # what the state says is shown all the same
        lines = [f"log.txt: {why_unreadable(error)}"]
    return lines or [log_line(line) for line in state.last_lines[-12:]]


def _section(title: str, lines: list[str]) -> None:
    if not lines:
        return
    columns = width(sys.stdout)
    sys.stdout.write(f"\n{paint(title, 'bold', sys.stdout)}\n")
    for line in lines:
        show("  " + (cut(sanitise(line), columns - 2) if columns and title != "next" else line))


def _document(run: RunDir, state: State, history: History, bad_lines: int, recipe: dict[str, Any]) -> dict[str, Any]:
    launch = read_launch(run)[0]
    return facts(run, state) | {
        "created": state.created,
        "step": history.step,
        "total_steps": history.total_steps,
        "at": state.waiting or history.at,
        "first": history.first,
        "last": history.last,
        "memory": history.memory,
        "memory_by_phase": history.memory_by_phase,
        "findings": [to_builtins(finding) for finding in history.findings.values()],
        "remarks": history.health,
        "checkpoints": checkpoint_steps(run),
        "recipe_differences": recipe,
        "result": read_result(run)[0],
        "last_lines": state.last_lines,
        "unreadable_event_lines": bad_lines,
        "next": next_steps(run, state),
        "launch": to_builtins(launch) if launch else None,
        "slurm_job": _slurm_job(run),
    }
