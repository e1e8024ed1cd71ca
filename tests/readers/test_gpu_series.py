"""Recorded GPUs as series and charts: where points lie, how many curves there are, what damage does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stackllama_console.readers.chart_sets import ChartSet, charts_for, curves_of, labels_for
from stackllama_console.readers.comparison import Comparison
from stackllama_console.readers.run_reader import RunReader
from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.gpu_metrics import GPU_FILE
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage

GIB = 1 << 30


def record(run: RunDir, *places: float, gpus: int = 1, attempt: int = 1) -> None:
    """Write a record at each place; GPU n is n percent busier than the place says."""
    writer = EventWriter(run.attempt_dir(attempt) / GPU_FILE)
    for place in places:
        metrics = {f"gpu/{index}/utilization": place + index for index in range(gpus)}
        metrics |= {f"gpu/{index}/memory": float(GIB) for index in range(gpus)}
        writer.write("metrics", step=int(place), metrics=metrics, data={"position": place})
    writer.close()


def titles(reader: RunReader) -> dict[str, ChartSet]:
    return {chart.title: chart for chart in charts_for(reader.stage, reader.series, bool(reader.memory))}


def test_points_lie_between_steps(make_run: Callable[..., RunDir]) -> None:
    run = make_run()
    reader = RunReader(run)
    record(run, 1, 1.25, 1.5, 2)
    assert reader.poll()
    assert list(reader.series["gpu/0/utilization"].steps) == [1, 1.25, 1.5, 2]
    assert reader.history.last == {} and not reader.poll()


def test_a_resumed_attempt_continues_where_it_began(make_run: Callable[..., RunDir]) -> None:
    run = make_run(attempt=2)
    run.attempt_dir(2).mkdir()
    record(run, 1, 2, 3, 4)
    record(run, 2.5, 3.5, attempt=2)
    reader = RunReader(run)
    reader.poll()
    assert list(reader.series["gpu/0/utilization"].steps) == [1, 2, 2.5, 3.5]


def test_a_few_gpus_have_a_curve_each(make_run: Callable[..., RunDir]) -> None:
    run = make_run()
    record(run, 1, 2, gpus=2)
    reader = RunReader(run)
    reader.poll()
    charts = titles(reader)
    assert list(charts) == ["GPU utilization, %", "GPU memory of this run"]
    assert [label for label, _ in curves_of(charts["GPU utilization, %"], reader)] == ["GPU 0", "GPU 1"]
    assert charts["GPU memory of this run"].unit == "bytes"
    assert labels_for(reader.stage, reader.history.last) == []


@pytest.mark.parametrize("count", [8, 16])
def test_many_have_lowest_mean_and_highest(make_run: Callable[..., RunDir], count: int) -> None:
    run = make_run()
    record(run, 10, 20, gpus=count)
    reader = RunReader(run)
    reader.poll()
    curves = curves_of(titles(reader)["GPU utilization, %"], reader)
    assert {label: series.last for label, series in curves} == {
        "lowest": 20,
        "mean": 20 + (count - 1) / 2,
        "highest": 20 + count - 1,
    }
    assert reader.series["gpu/7/utilization"].last == 27


def test_a_comparison_has_one_chart_per_quantity_of_many_gpus(home: Home, make_run: Callable[..., RunDir]) -> None:
    for name in ("one", "two"):
        record(make_run(name=name), 1, 2, gpus=8)
    comparison = Comparison(home, ["one", "two"])
    comparison.poll()
    words = ("highest", "lowest", "mean")
    assert comparison.metrics() == [f"gpu/{word}/{what}" for word in words for what in ("memory", "utilization")]


def test_charts_of_gpus_come_after_the_stages_own(make_run: Callable[..., RunDir]) -> None:
    run = make_run(Stage.SFT)
    writer = EventWriter(run.attempt_dir(1) / "events.jsonl")
    writer.write("metrics", step=1, metrics={"loss": 1.0, "a/strange/one": 2.0})
    writer.close()
    record(run, 1, 2)
    reader = RunReader(run)
    reader.poll()
    assert list(titles(reader)) == ["loss", "GPU utilization, %", "GPU memory of this run", "a/strange/one"]


def test_another_trainers_metric_of_such_a_name_has_a_chart() -> None:
    assert [chart.title for chart in charts_for(None, ["gpu/0/power", "loss"], False)] == ["loss", "gpu/0/power"]


@pytest.mark.parametrize("position", [None, "here", [], {}, 1e300, True, float("nan")])
def test_strange_places_are_the_steps(make_run: Callable[..., RunDir], position: Any) -> None:
    run = make_run()
    path: Path = run.attempt_dir(1) / GPU_FILE
    writer = EventWriter(path)
    writer.write("metrics", step=5, metrics={"gpu/0/power": 1.0}, data={"position": position})
    writer.write("metrics", metrics={"gpu/0/power": 1.0})
    writer.write("health", data={"message": "Events could not be written"})
    writer.close()
    with path.open("ab") as file:
        file.write(b"not a record\n")
    reader = RunReader(run)
    reader.poll()
    assert list(reader.series["gpu/0/power"].steps) == [1.0 if position is True else 5]
    assert reader.bad_lines == 1 and reader.notices == []


def test_something_else_in_the_files_place_is_an_error_and_no_crash(make_run: Callable[..., RunDir]) -> None:
    run = make_run()
    (run.attempt_dir(1) / GPU_FILE).mkdir()
    reader = RunReader(run)
    reader.poll()
    assert reader.error is not None and GPU_FILE in reader.error and "gpu/0/power" not in reader.series
