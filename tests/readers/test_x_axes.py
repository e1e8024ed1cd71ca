"""Series over time, tokens, episodes or progress: places by hand, in between, as they come, after a rewind."""

from types import SimpleNamespace
from typing import Any

from tests.tui.screens_kit import make_run

from stackllama_console.readers.run_reader import RunReader
from stackllama_console.readers.series import Series
from stackllama_console.readers.x_axes import Places, Replaced
from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage


def series(*points: tuple[float, float | None]) -> Series:
    result = Series("it")
    for step, value in points:
        result.append(step, value)
    return result


def points(over: Series) -> list[tuple[float, float]]:
    return list(zip(over.steps, over.values, strict=True))


def test_points_lie_where_their_steps_do() -> None:
    places = series((1, 100), (2, 250), (3, 400))
    assert points(Replaced(series((1, 0.5), (2, 0.6), (3, 0.7)), places).update()) == [
        (100, 0.5),
        (250, 0.6),
        (400, 0.7),
    ]
    assert points(Replaced(series((2, 0.6)), places).update()) == [(250, 0.6)]


def test_a_step_between_two_lies_in_proportion_and_one_beyond_waits() -> None:
    source, places = series((15, 1), (40, 2)), series((10, 100), (20, 300))
    over = Replaced(source, places)
    assert points(over.update()) == [(200, 1)]
    places.append(60, 700)
    assert points(over.update()) == [(200, 1), (500, 2)]


def test_gaps_stay_gaps_and_new_points_are_added() -> None:
    source, places = series((1, 1), (2, None), (3, 3)), series((1, 10), (2, 20), (3, 30), (4, 40))
    over = Replaced(source, places)
    first = over.update()
    assert (points(first), list(first.gaps)) == ([(10, 1), (30, 3)], [20])
    source.append(4, 4)
    assert over.update() is first
    assert points(first) == [(10, 1), (30, 3), (40, 4)]


def test_a_rewound_series_begins_anew() -> None:
    source, places = series((1, 1), (2, 2), (3, 3)), series((1, 10), (2, 20), (3, 30))
    over = Replaced(source, places)
    over.update()
    source.append(2, 9)
    places.append(2, 25)
    assert points(over.update()) == [(10, 1), (25, 9)]


def test_points_that_do_not_go_on_are_left_out() -> None:
    source, places = series((1, 1), (2, 2), (3, 3)), series((1, 10), (2, 10), (3, 30))
    assert points(Replaced(source, places).update()) == [(10, 1), (30, 3)]


def test_progress_is_a_share_of_all_steps() -> None:
    reader: Any = SimpleNamespace(history=SimpleNamespace(step=50, total_steps=200), series={})
    places = Places()
    places.choose("progress")
    over = places.over(series((50, 1)), reader)
    assert over is not None and points(over) == [(25, 1)]
    assert places.of(reader, "tokens") is None


def test_a_run_has_times_since_its_first_metrics(tmp_path: Any) -> None:
    run = make_run(Home(tmp_path / "home"), Stage.SFT, "timed")
    writer = EventWriter(run.attempt_dir(1) / "events.jsonl")
    for step in (1, 2):
        writer.write("metrics", step=step, metrics={"loss": 1.0, "num_tokens": step * 512.0})
    writer.close()
    reader = RunReader(run)
    reader.poll()
    assert list(reader.times.steps) == [1, 2] and reader.times.values[0] == 0.0 <= reader.times.values[1]
    places = Places()
    places.choose("tokens")
    over = places.over(reader.series["loss"], reader)
    assert over is not None and list(over.steps) == [512, 1024]
