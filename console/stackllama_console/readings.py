"""One run read once, without following it: state, newest metrics, checkpoints, differences from defaults."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import Struct

from stackllama_engine.contract.checkpoints import sealed, step_of
from stackllama_engine.contract.errors import DamagedError
from stackllama_engine.contract.events import Event
from stackllama_engine.contract.history import History, fold
from stackllama_engine.contract.metrics import listed
from stackllama_engine.contract.run_dir import Launch, RunDir, State
from stackllama_engine.contract.run_files import UNDECODABLE, open_file
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.run_location import Elsewhere, elsewhere

from .sanitise import one_line
from .units import size

_RECENT_BYTES = 256 * 1024  # a listing reads the end of a long run's events, not a million of them
_LARGEST = 1.7e308
_LOG_BYTES = 8 * 1024 * 1024  # a log may be one endless line


class Reading(Struct, kw_only=True):
    """One run at one moment. Times are Unix seconds."""

    id: str
    run: RunDir | None = None
    stage: Stage
    state: State
    history: History
    result: dict[str, Any] = {}
    elsewhere: Elsewhere | None = None

    @property
    def age(self) -> float:
        """Seconds since it was created."""
        return max(0.0, time.time() - self.state.created)

    @property
    def step(self) -> str:
        """``12/60``, ``12``, or empty before the first step."""
        done, total = self.history.step, self.history.total_steps
        return f"{done:,}/{total:,}" if total else f"{done:,}" if done else ""

    @property
    def last_metric(self) -> tuple[str, float | None] | None:
        """The one number for a list of runs: loss, accuracy or reward; from the result once there is one."""
        for values in (self.result, self.history.last):
            for metric in listed(self.stage):
                if metric.name in values and is_metric(values[metric.name]):
                    return metric.listed_as or metric.label, values[metric.name]
        return None


def is_metric(value: Any) -> bool:
    """Return whether a value of ``result.json`` is a number that can be shown; null is one that was not finite."""
    if value is None:
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def mappings(value: Any) -> list[dict[str, Any]]:
    """Return those entries of a list that are mappings; none of anything but a list."""
    rows = cast("list[Any]", value) if isinstance(value, list) else []
    return [cast("dict[str, Any]", row) for row in rows if isinstance(row, dict)]


def read_run(run: RunDir, state: State) -> Reading:
    """Read a run from its files; ``state`` is the reconciled one. What is damaged is left out."""
    return Reading(
        id=run.id,
        run=run,
        stage=state.stage,
        state=state,
        history=recent_history(run),
        result=read_result(run)[0],
        elsewhere=elsewhere(run, state),
    )


def read_result(run: RunDir) -> tuple[dict[str, Any], str]:
    """Return ``result.json``, and why it cannot be read: empty where it can, or is not there yet."""
    try:
        return run.read_json("result.json"), ""
    except DamagedError as error:
        return {}, str(error)


def read_launch(run: RunDir) -> tuple[Launch | None, str]:
    """Return ``launch.json``, and why it cannot be read: empty where it can, or is not there yet."""
    if not os.path.lexists(run.path / "launch.json"):
        return None, ""
    try:
        return run.read_launch(), ""
    except DamagedError as error:
        return None, str(error)


def recent_history(run: RunDir, limit: int = _RECENT_BYTES) -> History:
    """Fold the last bytes of every attempt's events: enough for newest values, not for first ones."""
    history = History()
    for events in recent_events(run, limit):
        fold(events, history)
    return history


def recent_events(run: RunDir, limit: int = _RECENT_BYTES) -> Iterator[list[Event]]:
    """Yield the last bytes of every attempt's events, oldest attempt first."""
    with contextlib.suppress(OSError):  # `attempts/` may not be read, which `runs show` says
        for path in run.events_files():
            yield _recent_events(path, limit)


def _recent_events(path: Path, limit: int) -> list[Event]:
    try:
        with os.fdopen(open_file(path), "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - limit))
            lines = file.read(limit).split(b"\n")[end > limit : -1]  # no truncated first or last line
    except OSError:  # `runs show` says what is wrong with it
        return []
    decoder = msgspec.json.Decoder(Event)
    events: list[Event] = []
    for line in lines:
        try:
            events.append(decoder.decode(line))
        except UNDECODABLE:
            continue  # `runs show` counts them, reading the whole file
    return events


def checkpoint_steps(run: RunDir) -> list[int]:
    """Return the steps of the complete checkpoints; one being written has another name."""
    return [step_of(path) for path in sealed(run.checkpoints)]


def measured_peaks(history: History) -> str:
    """Return ``trainer's peak allocated 12.2 GiB, …, most in update``; empty where nothing was measured."""
    names = {"allocated": "allocated", "reserved": "reserved", "device": "device", "rss": "RSS"}
    peaks = [f"{label} {size(value)}" for name, label in names.items() if (value := history.memory.get(name))]
    if not peaks:
        return ""
    phases = {phase: peak["allocated"] for phase, peak in history.memory_by_phase.items() if "allocated" in peak}
    most = max(phases, key=phases.__getitem__, default=None)  # when the resident set was highest is not known
    return f"trainer's peak {', '.join(peaks)}" + (f", most in {one_line(most)}" if most else "")


def last_log_lines(run: RunDir, count: int, attempt: int | None = None) -> list[bytes]:
    """Return the last lines of an attempt's log, oldest first, read from its end.

    Raises:
        OSError: it is there and cannot be read.
    """
    attempts = run.attempt_dirs()
    if attempt is not None:
        attempts = [path for path in attempts if int(path.name) == attempt]
    if not attempts:
        return []
    try:
        with os.fdopen(open_file(attempts[-1] / "log.txt"), "rb") as file:
            return tail_lines(file.fileno(), count, os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        return []


def tail_lines(descriptor: int, count: int, end: int) -> list[bytes]:
    """Return the last lines before byte ``end``; the last one may be unterminated."""
    data = b""
    while end > 0 and data.count(b"\n") <= count and len(data) < _LOG_BYTES:
        start = max(0, end - 65536)
        data = os.pread(descriptor, end - start, start) + data
        end = start
    return data.removesuffix(b"\n").split(b"\n")[-count:] if data else []


def recipe_differences(run: RunDir, stage: Stage) -> dict[str, Any]:
    """Return keys whose value is not the default, or that have none; a pipeline's as ``sft.key``.

    Raises:
        RecipeError: ``recipe.yaml`` is missing or was damaged.
    """
    from stackllama_engine.contract.recipe_io import load_recipe  # PyYAML is not needed to list runs

    values = msgspec.to_builtins(load_recipe(stage, run.recipe_file))
    if stage is not Stage.PIPELINE:
        return _differences(stage, values)
    return {
        f"{section}.{key}": value
        for section, inner in values.items()
        for key, value in _differences(Stage(section), inner).items()
    }


def _differences(stage: Stage, values: dict[str, Any]) -> dict[str, Any]:
    from stackllama_engine.contract.recipe import RECIPES

    fields = {field.encode_name: field for field in msgspec.structs.fields(RECIPES[stage])}
    return {
        key: value
        for key, value in values.items()
        if fields[key].required or msgspec.to_builtins(_default(fields[key])) != value
    }


def _default(field: Any) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
