"""``runs ls``: one line per run, fitted to the terminal's width."""

import argparse
import sys
import time
from typing import Any, TypeVar

from msgspec import Struct

from stackllama_engine.contract.errors import DamagedError, ExitCode, UsageError
from stackllama_engine.contract.labels import Labels, read_labels
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.leftovers import leftovers
from stackllama_engine.launch.reconcile import reconcile
from stackllama_engine.launch.repair import stage_of

from ..readers.run_row import Row
from ..readers.waiting import WaitWatch
from ..readings import Reading, read_run
from ..remote_runs import as_facts as elsewhere_facts
from ..remote_runs import in_words
from ..sanitise import one_line
from ..units import age, number
from .labels import as_facts
from .listing_view import table_of, wanted_rows
from .output import PROGRAM, say, show_json, show_table, width
from .run_status import COLOURS, DAMAGED

_OneT = TypeVar("_OneT", Reading, "_Damaged")
_OTHER_COLUMNS = 54  # stage to last metric, with the blanks between


def ls(arguments: argparse.Namespace) -> int:
    """Run ``runs ls``: print one line per run."""
    home = Home(arguments.home)
    readings, damaged = _readings(home, arguments.stage)
    rows = wanted_rows(home, arguments)
    if rows is not None:
        readings = _in_order_of(rows, readings)
        damaged = _in_order_of(rows, damaged)
    left = [each for each in leftovers(home) if not each.busy]
    if arguments.json:
        listed = [_listed(home, reading) for reading in readings] + [_listed_damaged(each) for each in damaged]
        document: dict[str, Any] = {"home": str(home.path), "runs": listed}
        show_json(document | {"damaged": [each.reason for each in damaged], "leftovers": [it.path.name for it in left]})
    elif arguments.columns:
        ids = {each.id for each in (*readings, *damaged)}
        titles, cells = table_of([row for row in rows or [] if row.id in ids], arguments.columns)
        state = titles.index("STATE") if "STATE" in titles else 0
        show_table(titles, cells, dict(COLOURS) if "STATE" in titles else {}, state)
    elif readings or damaged:
        header = ("RUN", "STAGE", "STATE", "STEP", "AGE", "LAST METRIC")
        rows = [(name, *_row(reading)) for name, reading in zip(_names(readings), readings, strict=True)]
        rows += [_damaged_row(each) for each in damaged]
        count = _columns_that_fit([header, *rows])
        show_table(header[:count], [row[:count] for row in rows], dict(COLOURS), 2)
    for each in damaged:
        say(f"damaged: {each.id}: {one_line(each.reason)} `{PROGRAM} runs rm {each.id}` removes it.")
    if left:
        names = ", ".join(one_line(each.path.name) for each in left)
        say(f"leftovers: {names}; `{PROGRAM} runs rm --leftovers` removes them.")
    if rows is not None and not readings and not damaged:
        say("No run matches.")
    elif not readings and not damaged:
        say(f"No runs under {home.runs_dir} yet. `{PROGRAM} demo` makes some.")
    return ExitCode.DONE


def _in_order_of(rows: list[Row], each: list[_OneT]) -> list[_OneT]:
    by_id = {one.id: one for one in each}
    return [by_id[row.id] for row in rows if row.id in by_id]


class _Damaged(Struct, frozen=True):
    """A run whose state cannot be read, and the reason."""

    id: str
    stage: Stage | None
    age: float
    reason: str


def _readings(home: Home, stage: str | None) -> tuple[list[Reading], list[_Damaged]]:
    """Read the runs of a stage; damaged ones also where their stage is unknown."""
    readings: list[Reading] = []
    damaged: list[_Damaged] = []
    for run in home.runs():
        try:
            reading = read_run(run, _state(run))
        except (DamagedError, OSError) as error:  # one damaged run must not hide the others
            one = _Damaged(run.id, stage_of(run), max(0.0, time.time() - run.touched()), str(error))
            if stage in (None, one.stage) or one.stage is None:
                damaged.append(one)
            continue
        if stage in (None, reading.stage):
            readings.append(reading)
    return readings, damaged


def _state(run: RunDir) -> State:
    """Return the reconciled state; the one on disk where a process outlives SIGKILL."""
    try:
        return reconcile(run)
    except TimeoutError as error:
        say(f"{run.id}: {one_line(str(error))}")
        return run.read_state()


def _damaged_row(one: _Damaged) -> tuple[str, ...]:
    return (one.id, one.stage or "", DAMAGED, "", age(one.age), "")


def _listed_damaged(one: _Damaged) -> dict[str, Any]:
    return {"run": one.id, "stage": one.stage, "state": DAMAGED, "age": one.age, "cause": one.reason}


def _names(readings: list[Reading]) -> list[str]:
    """Return run ids; where they are too wide, `…` stands for a pipeline's id in those of its children."""
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


def _columns_that_fit(cells: list[tuple[str, ...]]) -> int:
    """Count the columns that fit: the last metric (it may be cut to its title) is dropped first, then the age."""
    limit = width(sys.stdout)
    sizes = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sizes[-1] = len(cells[0][-1])
    for count in (len(sizes), len(sizes) - 1):
        if limit is None or sum(sizes[:count]) + 2 * (count - 1) <= limit:
            return count
    return len(sizes) - 2


def _row(reading: Reading) -> tuple[str, ...]:
    metric = reading.last_metric
    last = f"{metric[0]} {number(metric[1])}" if metric else _current_child(reading)
    if reading.history.reason and not reading.state.has_ended:  # it waits: that matters most
        last = one_line(str(reading.history.at))
    last = one_line(reading.state.waiting or last)
    if reading.run and (waiting := WaitWatch(reading.run).text(reading.state, reading.history)):
        last = waiting
    last = "  ".join(filter(None, (in_words(reading.elsewhere), last)))
    return (reading.stage, reading.state.phase, reading.step, age(reading.age), last)


def _current_child(reading: Reading) -> str:
    """Return the active child of an unfinished pipeline, in words."""
    if reading.stage is not Stage.PIPELINE or reading.state.phase == "finished" or not reading.history.phase:
        return ""
    return f"at {reading.history.phase.removeprefix(f'{reading.id}-')}"


def _listed(home: Home, reading: Reading) -> dict[str, Any]:
    metric = reading.last_metric
    try:
        labels = read_labels(home.run(reading.id))
    except UsageError as error:
        say(one_line(str(error)))
        labels = Labels()
    return {
        "run": reading.id,
        "stage": reading.stage,
        "state": reading.state.phase,
        "step": reading.history.step,
        "total_steps": reading.history.total_steps,
        "age": reading.age,
        "attempt": reading.state.attempt,
        "exit_code": reading.state.exit_code,
        "cause": reading.state.cause,
        "elsewhere": elsewhere_facts(reading.elsewhere),
        "at": reading.state.waiting or reading.history.at,
        "last_metric": {"name": metric[0], "value": metric[1]} if metric else None,
        **as_facts(labels),
    }
