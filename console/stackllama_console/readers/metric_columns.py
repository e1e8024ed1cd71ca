"""Metrics gathered over a batch of events, then appended to their series at once.

Nearly all events of a run carry the same names. Those are kept as rows under their tuple of names and turned into
columns when the batch is over. When names come up that other rows hold as well, the order must be kept: the rest of
the batch goes value by value.
"""

from array import array
from collections.abc import Mapping

from msgspec import Struct

from stackllama_engine.contract.history import fold_values

from ..sanitise import one_line
from .series import Series, ascends

NAMES = 1000
"""Series per run. A run with more metrics than that writes something else into their names."""


class _Rows(Struct, gc=False):
    """Events with the same names."""

    names: tuple[str, ...]
    evaluates: bool
    """Whether some were measured on held-out data."""
    steps: list[float] = []
    metrics: list[Mapping[str, float | None]] = []


class _Column(Struct, gc=False):
    """One series' values in this batch."""

    steps: list[float] = []
    values: list[float | None] = []


class Columns:
    """Series by sanitised name, and the first and last value of each.

    Attributes:
        series: replaced, never changed, when a name comes up for the first time.
        first: the earliest value of each name; None where that was NaN or infinite.
        last: the newest one.
        dropped: number of values whose names are beyond the first `NAMES`.
    """

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}
        self.first: dict[str, float | None] = {}
        self.last: dict[str, float | None] = {}
        self.dropped = 0
        self._rows: dict[tuple[str, ...], _Rows] = {}
        self._current: _Rows | None = None
        self._mixed = False
        self._by_name: dict[str, _Column] = {}
        self._columns: dict[str, _Column] = {}  # by sanitised name

    def add(self, step: float, metrics: Mapping[str, float | None]) -> bool:
        """Add the values of one event, None is a gap; return whether some were measured on held-out data."""
        names = tuple(metrics)
        rows = self._current
        if rows is None or rows.names != names:
            rows = self._rows_of(names)
            if rows is None:
                self._add_by_value(step, metrics)
                return _evaluates(names)
        rows.steps.append(step)
        rows.metrics.append(metrics)
        return rows.evaluates

    def flush(self) -> None:
        """Append what was added since to the series. Call it after each batch."""
        self._drain(keeps_steps=True)
        self._mixed = False
        columns = {name: column for name, column in self._columns.items() if column.steps}
        new = {name: Series(name) for name in columns if name not in self.series}
        if new:
            self.series = self.series | new
        arrays: dict[int, array[float] | None] = {}  # most columns have the same list of steps
        for name, column in columns.items():
            key = id(column.steps)
            if key not in arrays:
                arrays[key] = array("d", column.steps) if ascends(column.steps) else None
            if (steps := arrays[key]) is not None:
                self.series[name].extend_ascending(steps, column.values)
            else:
                self.series[name].extend(column.steps, column.values)
        fold_values(
            self.first,
            self.last,
            {name: column.values[0] for name, column in columns.items()},
            {name: column.values[-1] for name, column in columns.items()},
        )
        for column in columns.values():
            column.steps, column.values = [], []

    def _rows_of(self, names: tuple[str, ...]) -> _Rows | None:
        """Return the rows of these names and make them the current ones; None when this batch goes value by value."""
        if not self._mixed:
            rows = self._current = self._rows.get(names)
            if rows is not None:
                return rows
            if all(set(names).isdisjoint(others) for others in self._rows):
                rows = self._current = self._rows[names] = _Rows(names, _evaluates(names))
                return rows
            self._drain(keeps_steps=False)
            self._mixed = True
        return None

    def _add_by_value(self, step: float, metrics: Mapping[str, float | None]) -> None:
        """Add one event's values to their columns."""
        by_name = self._by_name
        for name, value in metrics.items():
            column = by_name.get(name) or self._column(name)
            if column is None:
                self.dropped += 1
            else:
                column.steps.append(step)
                column.values.append(value)

    def _drain(self, *, keeps_steps: bool) -> None:
        """Move the rows into columns; with ``keeps_steps`` these share a list of steps, and nothing is added to it."""
        for rows in self._rows.values():
            for name in rows.names:
                column = self._column(name)
                if column is None:
                    self.dropped += len(rows.steps)
                    continue
                values = [metrics[name] for metrics in rows.metrics]
                if column.steps or not keeps_steps:
                    column.steps = column.steps + rows.steps
                    column.values += values
                else:
                    column.steps, column.values = rows.steps, values
        self._rows.clear()
        self._current = None

    def _column(self, name: str) -> _Column | None:
        """Return the column of a name; None when there are too many. Names that sanitise to the same text share one."""
        column = self._by_name.get(name)
        if column is None and len(self._by_name) < NAMES:
            column = self._by_name[name] = self._columns.setdefault(one_line(name), _Column())
        return column


def _evaluates(names: tuple[str, ...]) -> bool:
    return any(name.startswith("eval") for name in names)
