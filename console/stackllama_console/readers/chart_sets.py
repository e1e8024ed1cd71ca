"""Which metrics are drawn together: a view of :mod:`stackllama_engine.contract.metrics`, the most telling first."""

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from stackllama_engine.contract.metrics import MEMORY, metrics_of
from stackllama_engine.contract.stages import Stage

Unit = Literal["number", "bytes"]


class ChartSet(Struct, frozen=True):
    """One chart: its title and its metrics with their labels; shown when one of them is there."""

    title: str
    metrics: tuple[tuple[str, str], ...]
    unit: Unit = "number"


def charts_of(stage: Stage | None) -> list[ChartSet]:
    """Every chart that a stage may have."""
    charts: dict[str, list[tuple[str, str]]] = {}
    for metric in metrics_of(stage):
        if metric.chart:
            charts.setdefault(metric.chart, []).append((metric.name, metric.series or metric.label))
    return [ChartSet(title, tuple(lines)) for title, lines in charts.items()]


def charts_for(stage: Stage | None, metrics: Iterable[str], has_memory: bool) -> list[ChartSet]:
    """The charts that have something to show: the stage's own, then one for each metric that none of them holds."""
    there = set(metrics)
    chosen: list[ChartSet] = []
    for chart in charts_of(stage):
        lines = tuple(pair for pair in chart.metrics if pair[0] in there)
        if has_memory and chart.title == MEMORY:  # it shows the reader's series of memory
            chosen.append(ChartSet(MEMORY, (), "bytes"))
        elif lines:
            chosen.append(ChartSet(chart.title, lines))
            there.difference_update(name for name, _ in lines)
    return [*chosen, *(ChartSet(name, ((name, name.rpartition("/")[2]),)) for name in sorted(there) if name != "epoch")]


def labels_for(stage: Stage | None, metrics: Iterable[str]) -> list[tuple[str, str]]:
    """(metric, label) of the metrics that are there, the stage's own first; others keep their names."""
    there = set(metrics)
    own = [(metric.name, metric.label) for metric in metrics_of(stage) if metric.name in there]
    named = {name for name, _ in own}
    return [*own, *((name, name) for name in sorted(there - named))]
