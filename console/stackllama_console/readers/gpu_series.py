"""What the supervisor recorded of a run's GPUs, as series over steps."""

from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from stackllama_engine.contract.events import EventReader, Record
from stackllama_engine.contract.gpu_metrics import GPU_FILE, gpu_metric, gpu_of

from .metric_columns import Columns
from .series import Series

FEW = 4
"""GPUs that a chart has a curve each for; of more it has lowest, mean and highest."""
SPREAD = ("lowest", "mean", "highest")
_FAR = 1 << 53


class GpuSeries:
    """Reader of the GPU files of all attempts of a run."""

    def __init__(self) -> None:
        self._columns = Columns()
        self._files: dict[int, EventReader] = {}

    @property
    def series(self) -> dict[str, Series]:
        """Metric name → values; of more than `FEW` GPUs also ``gpu/lowest/power`` and its like."""
        return self._columns.series

    @property
    def readers(self) -> list[EventReader]:
        """The readers of the files."""
        return list(self._files.values())

    def open(self, attempt: int, folder: Path) -> None:
        """Add an attempt; in ascending order."""
        self._files[attempt] = EventReader(folder / GPU_FILE)

    def read(self, attempt: int) -> tuple[bool, bool]:
        """Read on in an attempt's file.

        Returns:
            Whether anything was new; whether it continues what was read before, the file not having been replaced.

        Raises:
            OSError: it cannot be read.
        """
        reader = self._files[attempt]
        changed, bad_lines = False, reader.bad_lines
        for batch in reader.read_batches():
            if reader.restarts:
                break
            for record in batch:
                self._add(record)
            self._columns.flush()
            changed = True
        return changed or bad_lines != reader.bad_lines, not reader.restarts

    def _add(self, record: Record) -> None:
        if record.kind != "metrics" or not record.metrics or record.step is None:
            return
        position: Any = (record.data or {}).get("position")
        is_number = isinstance(position, int | float) and isfinite(position) and abs(position) < _FAR
        place = float(position) if is_number else float(record.step)
        self._columns.add(place, record.metrics | _spread(record.metrics))


def without_each(names: Iterable[str]) -> list[str]:
    """Leave out the metrics of single GPUs of which there is lowest, mean and highest."""
    every = list(names)
    have = set(every)
    return [name for name in every if (of := gpu_of(name)) is None or gpu_metric(SPREAD[0], of[1]) not in have]


def _spread(metrics: dict[str, float | None]) -> dict[str, float | None]:
    """Return lowest, mean and highest of each quantity that many GPUs have."""
    by_quantity: dict[str, list[float]] = {}
    for name, value in metrics.items():
        if value is not None and (of := gpu_of(name)) is not None:
            by_quantity.setdefault(of[1], []).append(value)
    spread: dict[str, float | None] = {}
    for quantity, values in by_quantity.items():
        if len(values) > FEW:
            for word, value in zip(SPREAD, (min(values), fmean(values), max(values)), strict=True):
                spread[gpu_metric(word, quantity)] = value
    return spread
