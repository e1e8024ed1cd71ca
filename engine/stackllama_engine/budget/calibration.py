"""What finished runs measured beside what was predicted, and how that narrows later predictions.

One JSON line a finished training run in ``<home>/calibration.jsonl``. Rows count for an estimate when machine,
versions, stage, method, device and number of processes are the same, and the sizes are alike: prediction
extrapolates badly from a toy to a large model.

The formula. Each row measured one number (reserved on a GPU, the resident set on a CPU) for which the estimate had an
interval [low, high]. Its position is ``p = (measured − low) / (high − low)``: 0 at the low end, 1 at the high one.
From n ≥ 3 rows, m their median and ``w = max(0.05, (1 + 2/n) · max|p − m|)``, the new interval is::

    low + (m − w)(high − low) … low + (m + w)(high − low)

never below the allocated bytes, and beyond the formula's own ends only where a row was measured there.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from ..contract.atomic_files import open_private, write_whole
from ..contract.recipe import MergeRecipe
from ..contract.run_lock import try_flock
from ..contract.user_files import open_file
from . import device
from .estimate import Estimate, EstimatedRecipe

FILE = "calibration.jsonl"
LEAST_ROWS = 3
_MOST_ROWS = 500
_MOST_BYTES = 1 << 20
_ALIKE = 4.0
"""Largest ratio of two sizes of which one says something about the other."""
_LEAST_HALF = 0.05
_PATIENCE = 2.0  # seconds; whoever holds the file's lock rewrites a megabyte

Bytes = Annotated[int, Meta(ge=0, le=1 << 50)]


class Kind(Struct, frozen=True, kw_only=True):
    """What must be equal for one run to say something about another."""

    machine: str
    versions: dict[str, str]
    stage: str
    method: str
    gpus: int
    on_gpu: bool


class Row(Struct, frozen=True, kw_only=True):
    """One finished run. Bytes on one device."""

    kind: Kind
    run: str
    time: float
    allocated: Bytes
    """Predicted."""
    interval: tuple[Bytes, Bytes]
    """Predicted, by the formula alone: reserved on a GPU, the resident set on a CPU."""
    measured: Annotated[int, Meta(ge=1, le=1 << 50)]
    """The same, at its peak."""
    phases: dict[str, Bytes] = {}
    """Predicted, allocated, by phase."""
    measured_phases: dict[str, dict[str, float]] = {}
    """Measured, by phase and name."""


class Calibration(Struct, frozen=True, kw_only=True):
    """The rows of a home, and this machine under the names that rows give it."""

    cpu: str
    gpu: str
    versions: dict[str, str]
    rows: list[Row]

    def narrow(
        self, found: Estimate, recipe: EstimatedRecipe, *, gpus: int, on_gpu: bool
    ) -> tuple[Estimate, str | None]:
        """See :func:`narrow`; of a merge nothing is known."""
        kind = Kind(
            machine=self.gpu if on_gpu else self.cpu,
            versions=self.versions,
            stage=str(recipe.stage),
            method=method_of(recipe),
            gpus=gpus,
            on_gpu=on_gpu,
        )
        return narrow(found, kind, self.rows)


def method_of(recipe: EstimatedRecipe) -> str:
    """How a recipe trains, as far as an allocator behaves differently: ``lora int8 bf16``."""
    if isinstance(recipe, MergeRecipe):
        return recipe.dtype
    base = "int8" if recipe.load_in_8bit else recipe.bnb_4bit_quant_type if recipe.load_in_4bit else recipe.dtype
    autocast = "bf16" if recipe.bf16 else "fp16" if recipe.fp16 else "no autocast"
    return f"{'lora' if recipe.use_peft else 'full'} {base} {autocast}"


def read_rows(home: Path) -> list[Row]:
    """Every row that can be read, oldest first; a torn or foreign line is none. Empty while there is no file."""
    try:
        with open_file(home / FILE) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _MOST_BYTES))
            lines = file.read(_MOST_BYTES).split(b"\n")[size > _MOST_BYTES :]
    except FileNotFoundError:
        return []
    rows: list[Row] = []
    for line in lines:
        # a torn line, a newer version's, or a person's own
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            rows.append(_DECODER.decode(line))
    return rows[-_MOST_ROWS:]


def add_row(home: Path, row: Row) -> None:
    """Add one, 0600; of more than 500 the oldest go. Two that finish at once both count.

    Raises:
        OSError: the home cannot be written, or somebody holds the file's lock for seconds.
    """
    lock = open_private(home / f".{FILE}.lock", os.O_RDWR | os.O_CREAT)
    try:
        _lock(lock)
        rows = [*read_rows(home), row][-_MOST_ROWS:]
        write_whole(home / FILE, b"".join(msgspec.json.encode(one) + b"\n" for one in rows))
    finally:
        os.close(lock)


def narrow(found: Estimate, kind: Kind, rows: Iterable[Row]) -> tuple[Estimate, str | None]:
    """The estimate with the interval that earlier runs give it, and one line that says so; itself and None without.

    Args:
        found: the formula's.
        kind: of the run that is planned.
        rows: of this home.
    """
    if found.unknown:  # an interval around a guess
        return found, None
    interval = measured_interval(found, on_gpu=kind.on_gpu)
    size = max(1, interval[0])
    alike = [row for row in rows if row.kind == kind and 1 / _ALIKE <= row.interval[0] / size <= _ALIKE]
    if len(alike) < LEAST_ROWS:
        return found, None
    low, high = _interval([_position(row) for row in alike], interval)
    low = max(low, found.allocated)
    high = max(high, low)
    wider = high - low > interval[1] - interval[0]
    told = f"{'range corrected' if wider or high > interval[1] else 'range narrowed'} by {len(alike)} finished runs "
    told += "of this kind on this machine"
    if kind.on_gpu:
        held = (low, high)
        changed = device.device(held, gpus=kind.gpus, on_gpu=True)
        return msgspec.structs.replace(found, reserved=held, device=changed), told
    return msgspec.structs.replace(found, device=(low, high)), told


def measured_interval(found: Estimate, *, on_gpu: bool) -> tuple[int, int]:
    """The interval of the number that a run measures: reserved on a GPU, the resident set on a CPU."""
    return found.reserved if on_gpu else found.device


def _interval(positions: list[float], formula: tuple[int, int]) -> tuple[int, int]:
    """See the module."""
    import statistics  # slow to import, and not needed while nothing was measured

    middle = statistics.median(positions)
    spread = (1 + 2 / len(positions)) * max(abs(position - middle) for position in positions)
    half = max(_LEAST_HALF, spread)
    lowest, highest = min(0.0, *positions), max(1.0, *positions)
    start = middle - half if lowest < 0 else max(middle - half, 0.0)
    end = middle + half if highest > 1 else min(middle + half, 1.0)
    low, high = formula
    return round(low + start * (high - low)), round(low + end * (high - low))


def _position(row: Row) -> float:
    low, high = row.interval
    return (row.measured - low) / max(1, high - low)


def _lock(descriptor: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while try_flock(descriptor, fcntl.LOCK_EX) is False:  # without flock two rows at once may cost one of them
        if time.monotonic() > deadline:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), FILE)
        time.sleep(0.02)


_DECODER = msgspec.json.Decoder(Row)
