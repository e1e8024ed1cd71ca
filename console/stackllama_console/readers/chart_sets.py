"""Charts: metrics that are drawn together. A view of :data:`stackllama_engine.contract.metrics.METRICS`.

The way of a metric to the screen, with ``loss/policy_avg`` as the example:

1. ``train/ppo/update.py`` reports it, and the trainer writes it in an event of the kind ``metrics``.
2. `METRICS` gives it a label, a chart (``loss``) and its label there (``policy``).
3. `RunReader.series` holds its values over steps, under its name.
4. `charts_for` picks the charts that have values, the most telling first.
5. `curves_of` pairs the labels of a chart with their series, which the monitor's ``Chart`` draws.
"""

from collections.abc import Iterable

from msgspec import Struct

from stackllama_engine.contract.gpu_metrics import gpu_metric, gpu_of
from stackllama_engine.contract.metrics import MEMORY, Metric, Unit, function_chart, metrics_of
from stackllama_engine.contract.stages import Stage

from .gpu_series import FEW, SPREAD
from .protocol import Reader
from .series import Series


class ChartSet(Struct, frozen=True):
    """One chart: its title, and (name, label) of its metrics; shown when one of them has values."""

    title: str
    metrics: tuple[tuple[str, str], ...]
    unit: Unit = "number"


def charts_of(stage: Stage | None) -> list[ChartSet]:
    """Return every chart that a stage may have."""
    charts: dict[str, list[Metric]] = {}
    for metric in metrics_of(stage):
        if metric.chart and "*" not in metric.name:
            charts.setdefault(metric.chart, []).append(metric)
    return [
        ChartSet(title, tuple((metric.name, metric.series or metric.label) for metric in metrics), metrics[0].unit)
        for title, metrics in charts.items()
    ]


def charts_for(stage: Stage | None, metrics: Iterable[str], has_memory: bool) -> list[ChartSet]:
    """Return the charts that have values: the stage's own, then one for each metric that is in none of them."""
    every = set(metrics)
    names = {name for name in every if stage is None or not name.startswith("gpu/")}
    charts: list[ChartSet] = []
    for chart in charts_of(stage):
        lines = tuple(pair for pair in chart.metrics if pair[0] in names)
        functions = sorted(name for name in names - {name for name, _ in lines} if function_chart(name) == chart.title)
        lines += tuple((name, name.rpartition("/")[2].replace("_", " ")) for name in functions)
        if has_memory and chart.title == MEMORY:  # its series are the reader's memory; see `curves_of`
            charts.append(ChartSet(MEMORY, (), "bytes"))
        elif lines:
            charts.append(ChartSet(chart.title, lines, chart.unit))
            names.difference_update(name for name, _ in lines)
    charts += gpu_charts(stage, every)
    return [*charts, *(ChartSet(name, ((name, name.rpartition("/")[2]),)) for name in sorted(names) if name != "epoch")]


def gpu_charts(stage: Stage | None, metrics: Iterable[str]) -> list[ChartSet]:
    """Return the charts of what was recorded of the GPUs: a curve each for a few, of more lowest, mean and highest."""
    indices: dict[str, list[int]] = {}
    for name in metrics:
        if (of := gpu_of(name)) is not None:
            indices.setdefault(of[1], []).append(of[0])
    return [
        ChartSet(metric.chart, _gpu_lines(metric, quantity, sorted(indices[quantity])), _gpu_unit(metric))
        for metric in metrics_of(stage)
        if metric.name.startswith("gpu/*/") and (quantity := metric.name.rpartition("/")[2]) in indices
    ]


def _gpu_lines(metric: Metric, quantity: str, indices: list[int]) -> tuple[tuple[str, str], ...]:
    if len(indices) > FEW:
        return tuple((gpu_metric(word, quantity), word) for word in SPREAD)
    return tuple((gpu_metric(index, quantity), f"{metric.series} {index}") for index in indices)


def _gpu_unit(metric: Metric) -> Unit:
    return "bytes" if metric.unit == "bytes" else "number"


def curves_of(chart: ChartSet, reader: Reader) -> list[tuple[str, Series]]:
    """Return (label, series) of what a chart shows of a reader."""
    if chart.title == MEMORY:
        return list(reader.memory.items())
    series = reader.series
    return [(label, series[name]) for name, label in chart.metrics if name in series]


def labels_for(stage: Stage | None, metrics: Iterable[str]) -> list[tuple[str, str]]:
    """Return (name, label) of metrics that have values, the stage's own first; others keep their names."""
    names = set(metrics)
    own = [(metric.name, metric.label) for metric in metrics_of(stage) if metric.name in names]
    labelled = {name for name, _ in own}
    return [*own, *((name, name) for name in sorted(names - labelled))]
