"""Metrics gathered over a batch of events, then given to their series at once.

Nearly all events of a run carry the same names. Those are kept as rows under their tuple of names and turned into
columns when the batch is over, or when names come up that other rows hold as well and the order must be kept.
"""

from collections.abc import Mapping

from msgspec import Struct

from ..sanitise import one_line
from .series import Series

NAMES = 1000
"""Series of one run. A run with more metrics than that writes something else into their names."""


class _Rows(Struct, gc=False):
    """Events with the same names."""

    names: tuple[str, ...]
    steps: list[float] = []
    metrics: list[Mapping[str, float | None]] = []


class _Column(Struct, gc=False):
    """One series' values of this batch."""

    steps: list[float] = []
    values: list[float | None] = []


class Columns:
    """Series by sanitised name, and the first and last value of each.

    Attributes:
        series: replaced, never changed, when a name comes up for the first time.
        first: the earliest value of each name; None where that was NaN or infinite.
        last: the newest one.
        left_out: values of names beyond the first `NAMES`.
    """

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}
        self.first: dict[str, float | None] = {}
        self.last: dict[str, float | None] = {}
        self.left_out = 0
        self._rows: dict[tuple[str, ...], _Rows] = {}
        self._current: _Rows | None = None
        self._clean: dict[str, str | None] = {}
        self._columns: dict[str, _Column] = {}

    def take(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Values of one event; None is a gap."""
        names = tuple(metrics)
        rows = self._current
        if rows is None or rows.names != names:
            rows = self._turn_to(names)
        rows.steps.append(step)
        rows.metrics.append(metrics)

    def flush(self) -> None:
        """Give what was taken since to the series. Call it after each batch."""
        for rows in self._rows.values():
            self._drain(rows)
        self._rows.clear()
        self._current = None
        new = {name: Series(name) for name in self._columns if name not in self.series}
        if new:
            self.series = self.series | new
        for name, column in self._columns.items():
            self.series[name].extend(column.steps, column.values)
        self._columns.clear()

    def _turn_to(self, names: tuple[str, ...]) -> _Rows:
        rows = self._rows.get(names)
        if rows is None:
            rows = self._rows[names] = _Rows(names)
        for other in self._rows.values():
            if other is not rows and other.steps and not set(names).isdisjoint(other.names):
                self._drain(other)
        self._current = rows
        return rows

    def _drain(self, rows: _Rows) -> None:
        """Rows → columns."""
        if not rows.steps:
            return
        for name in rows.names:
            clean = self._name(name)
            if clean is None:
                self.left_out += len(rows.steps)
                continue
            values = [metrics[name] for metrics in rows.metrics]
            self.first.setdefault(clean, values[0])
            self.last[clean] = values[-1]
            column = self._columns.get(clean)
            if column is None:
                self._columns[clean] = _Column(rows.steps.copy(), values)
            else:
                column.steps += rows.steps
                column.values += values
        rows.steps.clear()
        rows.metrics.clear()

    def _name(self, name: str) -> str | None:
        """The sanitised name; None when there are too many."""
        if name not in self._clean:
            if len(self._clean) >= NAMES:
                return None
            self._clean[name] = one_line(name)
        return self._clean[name]
