"""Calibration of estimates by finished runs: measured against predicted memory.

One JSON line per finished training run in ``<home>/calibration.jsonl``. A row is used for an estimate if machine,
versions, stage, method, device and number of processes are the same and the sizes are similar: predictions extrapolate
badly from a toy model to a large one.

The formula. Each row measured one number (reserved on a GPU, the resident set on a CPU) for which the estimate had an
interval [low, high]. Its position is ``p = (measured − low) / (high − low)``: 0 at the low end, 1 at the high one.
From n ≥ 3 rows with median m and ``w = max(0.05, (1 + 2/n) · max|p − m|)``, the new interval is::

    low + (m − w)(high − low) … low + (m + w)(high − low)

never below the allocated bytes, and outside the formula's interval only if a row was measured there.
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
"""Largest ratio of two sizes that are similar."""
_LEAST_HALF = 0.05
_PATIENCE = 2.0  # seconds; whoever holds the file's lock rewrites a megabyte

Bytes = Annotated[int, Meta(ge=0, le=1 << 50)]


class Kind(Struct, frozen=True, kw_only=True):
    """Properties that must be equal for one run to calibrate another."""

    machine: str
    versions: dict[str, str]
    stage: str
    method: str
    gpus: int
    on_gpu: bool


class Row(Struct, frozen=True, kw_only=True):
    """One finished run; bytes on one device."""

    kind: Kind
    run: str
    time: float
    allocated: Bytes
    """Predicted allocated bytes."""
    interval: tuple[Bytes, Bytes]
    """Interval predicted by the formula alone: reserved on a GPU, the resident set on a CPU."""
    measured: Annotated[int, Meta(ge=1, le=1 << 50)]
    """Measured peak of the same."""
    phases: dict[str, Bytes] = {}
    """Predicted allocated bytes by phase."""
    measured_phases: dict[str, dict[str, float]] = {}
    """Measured bytes by phase and name."""


class Calibration(Struct, frozen=True, kw_only=True):
    """Rows of a home, and this machine by the names used in rows."""

    cpu: str
    gpu: str
    versions: dict[str, str]
    rows: list[Row]

    def narrow(
        self, estimate: Estimate, recipe: EstimatedRecipe, *, gpus: int, on_gpu: bool
    ) -> tuple[Estimate, str | None]:
        """Narrow an estimate; see :func:`narrow`. Merges are never recorded."""
        kind = Kind(
            machine=self.gpu if on_gpu else self.cpu,
            versions=self.versions,
            stage=str(recipe.stage),
            method=method_of(recipe),
            gpus=gpus,
            on_gpu=on_gpu,
        )
        return narrow(estimate, kind, self.rows)


def method_of(recipe: EstimatedRecipe) -> str:
    """Return the training method as far as it changes the allocator's behaviour: ``lora int8 bf16``."""
    if isinstance(recipe, MergeRecipe):
        return recipe.dtype
    base = recipe.base_precision if recipe.quantised else recipe.dtype
    autocast = "bf16" if recipe.bf16 else "fp16" if recipe.fp16 else "no autocast"
    return f"{'lora' if recipe.use_peft else 'full'} {base} {autocast}"


def read_rows(home: Path) -> list[Row]:
    """Read all valid rows, oldest first; truncated or foreign lines are skipped. Empty while there is no file."""
    try:
        with open_file(home / FILE) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _MOST_BYTES))
            lines = file.read(_MOST_BYTES).split(b"\n")[size > _MOST_BYTES :]
    except FileNotFoundError:
        return []
    rows: list[Row] = []
    for line in lines:
        # a truncated line, one of a newer version, or one of the user
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            rows.append(_DECODER.decode(line))
    return rows[-_MOST_ROWS:]


def add_row(home: Path, row: Row) -> None:
    """Add a row, file mode 0600; of more than 500 the oldest are dropped. Two concurrent calls both add theirs.

    Raises:
        OSError: the home cannot be written, or another process holds the file's lock for seconds.
    """
    lock = open_private(home / f".{FILE}.lock", os.O_RDWR | os.O_CREAT)
    try:
        _lock(lock)
        rows = [*read_rows(home), row][-_MOST_ROWS:]
        write_whole(home / FILE, b"".join(msgspec.json.encode(one) + b"\n" for one in rows))
    finally:
        os.close(lock)


def narrow(estimate: Estimate, kind: Kind, rows: Iterable[Row]) -> tuple[Estimate, str | None]:
    """Return the estimate with the interval from earlier runs, and a notice; the same and None without such runs.

    Args:
        estimate: the formula's estimate.
        kind: kind of the planned run.
        rows: rows of this home.
    """
    if estimate.unknown:  # an interval around a guess
        return estimate, None
    interval = measured_interval(estimate, on_gpu=kind.on_gpu)
    size = max(1, interval[0])
    alike = [row for row in rows if row.kind == kind and 1 / _ALIKE <= row.interval[0] / size <= _ALIKE]
    if len(alike) < LEAST_ROWS:
        return estimate, None
    low, high = _interval([_position(row) for row in alike], interval)
    low = max(low, estimate.allocated)
    high = max(high, low)
    is_wider = high - low > interval[1] - interval[0]
    verb = "corrected" if is_wider or high > interval[1] else "narrowed"
    notice = f"range {verb} by {len(alike)} finished runs of this kind on this machine"
    if kind.on_gpu:
        reserved = (low, high)
        total = device.device(reserved, gpus=kind.gpus, on_gpu=True)
        return msgspec.structs.replace(estimate, reserved=reserved, device=total), notice
    return msgspec.structs.replace(estimate, device=(low, high)), notice


def measured_interval(estimate: Estimate, *, on_gpu: bool) -> tuple[int, int]:
    """Return the interval of the number that a run measures: reserved on a GPU, the resident set on a CPU."""
    return estimate.reserved if on_gpu else estimate.device


def _interval(positions: list[float], formula: tuple[int, int]) -> tuple[int, int]:
    """Return the new interval; see the module for the formula."""
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
