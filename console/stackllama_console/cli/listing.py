"""``runs ls``: one line a run, and where a terminal is too narrow for it."""

import argparse
import sys
from typing import Any

from stackllama_engine.contract.errors import ExitCode, UsageError
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.reconcile import reconcile

from ..readings import Reading, read_run
from ..sanitise import one_line
from ..units import age, number
from .outcome import COLOURS
from .output import PROGRAM, say, show_json, show_table, width

_OTHER_COLUMNS = 54  # stage to last metric, with the blanks between


def ls(arguments: argparse.Namespace) -> int:
    """``runs ls``: one line a run."""
    home = Home(arguments.home)
    readings, damaged = _readings(home, arguments.stage)
    if arguments.json:
        show_json({"home": str(home.path), "runs": [_listed(reading) for reading in readings], "damaged": damaged})
    elif readings:
        header = ("RUN", "STAGE", "STATE", "STEP", "AGE", "LAST METRIC")
        rows = [(name, *_row(reading)) for name, reading in zip(_names(readings), readings, strict=True)]
        count = _columns_that_fit([header, *rows])
        show_table(header[:count], [row[:count] for row in rows], dict(COLOURS), 2)
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


def _columns_that_fit(cells: list[tuple[str, ...]]) -> int:
    """How many columns a line has room for: the last metric (it may be cut to its title) goes first, then the age."""
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
    if reading.history.reason and not reading.state.has_ended:  # it waits: that is what to know of it
        last = one_line(str(reading.history.at))
    return (reading.stage, reading.state.phase, reading.step, age(reading.age), last)


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
        "at": reading.history.at, "last_metric": {"name": metric[0], "value": metric[1]} if metric else None,
    }  # fmt: skip
