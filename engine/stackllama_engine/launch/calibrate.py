"""Calibration of memory estimates: finished runs add their measurements, planned ones use them."""

import socket
import time
from pathlib import Path

from ..budget.calibration import Calibration, Kind, Row, add_row, measured_interval, method_of, read_rows
from ..contract.events import EventReader
from ..contract.history import History, fold
from ..contract.recipe import PPORecipe
from ..contract.run_dir import RunDir, State
from .expected import expected
from .gpus import first_card
from .machine_check import package_versions

MATTER = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "stackllama-console")
"""Packages whose versions decide how much memory a run needs."""
_TRAINS = ("train", "update")
"""A phase without which nothing was trained: an attempt that only wrote results measured something else."""


def add_finished(run: RunDir, state: State) -> None:
    """Add the row of a run's newest attempt, if it trained and measured its memory.

    Raises:
        OSError: the calibration file cannot be written.
        UsageError: the run's files cannot be read.
    """
    history = fold(EventReader(run.attempt_dir(state.attempt) / "events.jsonl").read_what_can_be())
    trained = any(phase in history.memory_by_phase for phase in _TRAINS)
    expectation = expected(run, state.stage) if trained else None
    measured = _measured(history, on_gpu=expectation.on_gpu) if expectation else None
    if expectation is None or measured is None:
        return
    if isinstance(expectation.recipe, PPORecipe) and expectation.recipe.use_vllm:  # not in torch's memory counts
        return
    launch = run.read_launch()
    estimate = expectation.estimate
    kind = Kind(
        machine=machine_name(launch.host, on_gpu=expectation.on_gpu),
        versions=_versions(launch.versions),
        stage=state.stage,
        method=method_of(expectation.recipe),
        gpus=expectation.gpus,
        on_gpu=expectation.on_gpu,
    )
    row = Row(
        kind=kind,
        run=run.id,
        time=time.time(),
        allocated=estimate.allocated,
        interval=measured_interval(estimate, on_gpu=expectation.on_gpu),
        measured=measured,
        phases={one.name: one.bytes for one in estimate.phases},
        measured_phases=history.memory_by_phase,
    )
    add_row(run.path.parents[1], row)


def calibration(home: Path) -> Calibration | None:
    """Return the measurements of a home's runs; None while there are none.

    Raises:
        OSError: the file is there and cannot be read.
    """
    rows = read_rows(home)
    if not rows:
        return None
    host = socket.gethostname()
    return Calibration(
        cpu=machine_name(host, on_gpu=False),
        gpu=machine_name(host, on_gpu=True),
        versions=_versions(package_versions()),
        rows=rows,
    )


def machine_name(host: str, *, on_gpu: bool) -> str:
    """Name a machine as measurements depend on it: host and GPU model, or host and CPU."""
    if not on_gpu:
        return f"{host}, CPU"
    card = first_card()
    return f"{host}, {card.name if card else 'a GPU'}"


def _versions(versions: dict[str, str]) -> dict[str, str]:
    return {name: versions[name] for name in MATTER if name in versions}


def _measured(history: History, *, on_gpu: bool) -> int | None:
    """Return the attempt's peak in bytes: reserved GPU memory, or resident memory on the CPU."""
    value = history.memory.get("reserved" if on_gpu else "rss")
    return round(value) if value else None
