"""A finished training run becomes a row of its home's calibration file; a planned one finds the rows like it."""

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
"""Packages whose versions decide what a run takes."""
_TRAINS = ("train", "update")
"""A phase without which nothing was trained: an attempt that only wrote results measured something else."""


def add_finished(run: RunDir, state: State) -> None:
    """Add the row of a run's newest attempt, if it trained and said what it took.

    Raises:
        OSError: the calibration file cannot be written.
        UsageError: the run's files cannot be read.
    """
    history = fold(EventReader(run.attempt_dir(state.attempt) / "events.jsonl").read_what_can_be())
    known = expected(run, state.stage) if any(phase in history.memory_by_phase for phase in _TRAINS) else None
    measured = _measured(history, on_gpu=known.on_gpu) if known else None
    if known is None or measured is None:
        return
    if isinstance(known.recipe, PPORecipe) and known.recipe.use_vllm:  # torch's figures are not vLLM's
        return
    launch = run.read_launch()
    found = known.estimate
    kind = Kind(
        machine=machine_name(launch.host, on_gpu=known.on_gpu),
        versions=_versions(launch.versions),
        stage=state.stage,
        method=method_of(known.recipe),
        gpus=known.gpus,
        on_gpu=known.on_gpu,
    )
    row = Row(
        kind=kind,
        run=run.id,
        time=time.time(),
        allocated=found.allocated,
        interval=measured_interval(found, on_gpu=known.on_gpu),
        measured=measured,
        phases={one.name: one.bytes for one in found.phases},
        measured_phases=history.memory_by_phase,
    )
    add_row(run.path.parents[1], row)


def calibration(home: Path) -> Calibration | None:
    """What runs of a home measured; None while there is nothing.

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
    """A machine as measurements depend on it: its name and its card, or that it computes on the CPU."""
    if not on_gpu:
        return f"{host}, CPU"
    card = first_card()
    return f"{host}, {card.name if card else 'a GPU'}"


def _versions(found: dict[str, str]) -> dict[str, str]:
    return {name: found[name] for name in MATTER if name in found}


def _measured(history: History, *, on_gpu: bool) -> int | None:
    """The attempt's peak of what decides whether it fits."""
    value = history.memory.get("reserved" if on_gpu else "rss")
    return round(value) if value else None
