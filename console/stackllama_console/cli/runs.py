"""``runs``: ls, show, logs, watch, stop, resume. Whoever looks at a run reconciles it first."""

import argparse
import difflib
import sys
import time
from typing import Any

from stackllama_engine.contract.errors import ExitCode, UsageError
from stackllama_engine.contract.run_dir import Home, RunDir, State, check_run_id
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.children import CHILDREN, child_id
from stackllama_engine.launch.reconcile import reconcile

from ..readings import Reading, last_log_lines, read_run
from ..sanitise import log_line, one_line
from .finish import finish
from .outcome import COLOURS, facts, say_next
from .output import PROGRAM, number, say, show, show_json, show_table, width

_OTHER_COLUMNS = 54  # stage to last metric, with the blanks between


def find(home: Home, run_id: str | None) -> RunDir:
    """The run that was named, or the newest one; a pipeline rather than its children.

    Raises:
        UsageError: no such run; names the nearest one.
    """
    if run_id is not None:
        check_run_id(run_id)
        try:
            return home.run(run_id)
        except UsageError as error:
            near = difflib.get_close_matches(run_id, [run.id for run in home.runs()], n=1)
            raise UsageError(f"{error} Did you mean `{near[0]}`?" if near else str(error)) from None
    runs = home.runs()
    if not runs:
        raise UsageError(f"No runs under {home.runs_dir}. `{PROGRAM} demo` makes some.")
    ids = {run.id for run in runs}
    children = {child_id(parent, child.suffix) for parent in ids for child in CHILDREN}
    return next(run for run in reversed(runs) if run.id not in children)


def ls(arguments: argparse.Namespace) -> int:
    """``runs ls``: one line a run."""
    home = Home(arguments.home)
    readings, damaged = _readings(home, arguments.stage)
    if arguments.json:
        show_json({"home": str(home.path), "runs": [_listed(reading) for reading in readings], "damaged": damaged})
    elif readings:
        header = ("RUN", "STAGE", "STATE", "STEP", "AGE", "LAST METRIC")
        rows = [(name, *_row(reading)) for name, reading in zip(_names(readings), readings, strict=True)]
        show_table(header, rows, dict(COLOURS), 2)
    for message in damaged:
        say(f"left out: {one_line(message)}")
    if not readings:
        say(f"No runs under {home.runs_dir} yet. `{PROGRAM} demo` makes some.")
    return ExitCode.DONE


def _readings(home: Home, stage: str | None) -> tuple[list[Reading], list[str]]:
    found: list[Reading] = []
    damaged: list[str] = []
    for run in home.runs():
        try:
            reading = read_run(run, reconcile(run))
        except (UsageError, TimeoutError) as error:
            damaged.append(str(error))  # one damaged run must not hide the others
            continue
        if stage in (None, reading.stage):
            found.append(reading)
    return found, damaged


def _names(readings: list[Reading]) -> list[str]:
    """Run ids; where the terminal is too narrow for them, `…` stands for a pipeline's id in those of its children."""
    names: list[str] = []
    pipeline = None
    for reading in readings:
        if pipeline and reading.id.startswith(f"{pipeline}-"):
            names.append(f"  …{reading.id.removeprefix(pipeline)}")
            continue
        names.append(reading.id)
        pipeline = reading.id if reading.stage is Stage.PIPELINE else None
    full = [reading.id for reading in readings]
    limit = width(sys.stdout)
    return full if limit is None or max(map(len, full)) + _OTHER_COLUMNS <= limit else names


def _row(reading: Reading) -> tuple[str, ...]:
    metric = reading.last_metric
    last = f"{metric[0]} {number(metric[1])}" if metric else _current_child(reading)
    return (reading.stage, reading.state.phase, reading.step, _age(reading.age), last)


def _current_child(reading: Reading) -> str:
    """Where an unfinished pipeline is."""
    if reading.stage is not Stage.PIPELINE or reading.state.phase == "finished" or not reading.history.phase:
        return ""
    return f"at {reading.history.phase.removeprefix(f'{reading.id}-')}"


def _listed(reading: Reading) -> dict[str, Any]:
    metric = reading.last_metric
    return {
        "run": reading.id, "stage": reading.stage, "state": reading.state.phase, "step": reading.history.step,
        "total_steps": reading.history.total_steps, "age": reading.age, "attempt": reading.state.attempt,
        "exit_code": reading.state.exit_code, "cause": reading.state.cause,
        "last_metric": {"name": metric[0], "value": metric[1]} if metric else None,
    }  # fmt: skip


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def show_run(arguments: argparse.Namespace) -> int:
    """``runs show``."""
    from .show import show_one

    home = Home(arguments.home)
    run = find(home, arguments.run)
    return show_one(home, run, reconcile(run), as_json=arguments.json)


def logs(arguments: argparse.Namespace) -> int:
    """``runs logs``: the last lines of the attempt's log, and with ``-f`` what comes after them."""
    run = find(Home(arguments.home), arguments.run)
    attempts = [int(path.name) for path in run.attempt_dirs()]
    attempt = arguments.attempt or (attempts[-1] if attempts else None)
    if arguments.attempt and arguments.attempt not in attempts:
        there = ", ".join(map(str, attempts)) or "none"
        raise UsageError(f"{run.id} has no attempt {arguments.attempt}; there are: {there}.")
    if arguments.follow:
        return _follow_log(run, arguments.lines, attempt)
    lines = last_log_lines(run, arguments.lines, attempt)
    for line in lines:
        show(log_line(line.decode("utf-8", "replace")))
    if not lines:
        say(f"{run.id} has printed nothing yet.")
    return ExitCode.DONE


def _follow_log(run: RunDir, count: int, attempt: int | None) -> int:
    from .log_tail import LogTail

    tail = LogTail(run, attempt, count)
    while True:
        ended = reconcile(run).has_ended  # first, so that the last lines are there when it has
        for line in tail.read(final=ended):
            show(log_line(line))
        sys.stdout.flush()
        if ended:
            return ExitCode.DONE
        time.sleep(0.2)


def watch(arguments: argparse.Namespace) -> int:
    """``runs watch``: follow until it ends; its exit code."""
    from .follow import follow

    home = Home(arguments.home)
    run = find(home, arguments.run)
    return finish(home, run, follow(home, run, plain=arguments.plain), as_json=arguments.json)


def stop(arguments: argparse.Namespace) -> int:
    """``runs stop``: ask it to save and end; wait for that unless told not to."""
    from stackllama_engine.launch.reconcile import stop as stop_run

    run = find(Home(arguments.home), arguments.run)
    before = reconcile(run)
    if before.has_ended:
        say(f"{run.id} has ended already: {before.phase}.")
        state = before
    else:
        if arguments.wait:
            say(f"{run.id}: asked to save and stop; waiting until it has ended.")
        state = stop_run(run, wait=arguments.wait)
    if arguments.json:
        show_json(facts(run, state))
    return _stopped(run, state, waited=arguments.wait)


def _stopped(run: RunDir, state: State, *, waited: bool) -> int:
    if not state.has_ended:
        say(f"{run.id}: {'still ' + state.phase if waited else 'asked to stop'}.")
        say_next(run, state)
        return ExitCode.FAILED if waited else ExitCode.DONE
    code = f", exit code {state.exit_code}" if state.exit_code is not None else ""
    say(f"{run.id}: {state.phase}{code}{f': {one_line(state.cause)}' if state.cause else ''}")
    say_next(run, state)
    return ExitCode.DONE if state.phase in ("stopped", "finished") else ExitCode.FAILED


def resume(arguments: argparse.Namespace) -> int:
    """``runs resume``: a new attempt from the newest complete checkpoint."""
    from stackllama_engine.launch import launcher

    from .launch import flush, follow_or_leave

    home = Home(arguments.home)
    run = launcher.resume(home, find(home, arguments.run).id)
    if not arguments.json:
        show(run.id)
        flush()
    return follow_or_leave(arguments, home, run)
