"""Keys for all charts: each metric's own look, pins, find, the x axis, export; which charts are on a page."""

import csv
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.tui.app_kit import Shown, run_app
from tests.tui.screens_kit import Driven, drive, isolate, make_run, write_metrics

from stackllama_console.paths import exports_dir
from stackllama_console.settings import ChartSettings, Settings, load_settings, save_settings
from stackllama_console.tui.chart_board import Board, shape
from stackllama_console.tui.screens.compare import CompareScreen
from stackllama_console.tui.widgets.chart import Chart
from stackllama_console.tui.widgets.chart_look import Looks
from stackllama_console.tui.widgets.x_scale import x_label, x_ticks
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage

METRICS = {f"mine/{name}": [1.0, 2.0, 3.0] for name in "abcdefghij"} | {"num_tokens": [100.0, 200.0, 300.0]}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = isolate(tmp_path, monkeypatch)
    for name in ("one", "two"):
        write_metrics(make_run(home, Stage.SFT, name), METRICS)
    return home


def titles(shown: Driven) -> list[str]:
    return [chart.title for chart in shown.app.screen.query(Chart) if chart.display and chart.region]


def focused(shown: Driven) -> Any:
    return shown.app.focused


def test_the_look_is_the_metrics_and_is_remembered(home: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.reaches("MonitorScreen")
        await shown.shows("mine/a")
        await shown.press("y", "s", "c")
        first = focused(shown)
        assert (first.title, first.log_axis, first.weight, first.view.cursor) == ("mine/a", True, 0.6, 3.0)
        await shown.press("right_square_bracket")
        assert (first.title, first.log_axis, first.weight, first.view.cursor) == ("mine/c", False, 0.0, None)
        await shown.press("left_square_bracket")
        assert (first.title, first.log_axis, first.weight, first.view.cursor) == ("mine/a", True, 0.6, 3.0)
        await shown.press("escape")

    run_app(home, script, target="one")
    assert load_settings()[0].charts == {"mine/a": ChartSettings(log=True, smoothing=0.6)}

    async def again(shown: Shown) -> None:
        await shown.reaches("MonitorScreen")
        await shown.shows("mine/a")
        assert focused(shown).log_axis and focused(shown).weight == 0.6
        await shown.press("S", "Y")
        assert {chart.weight for chart in shown.front.query(Chart) if chart.display} == {0.9}
        assert not any(chart.log_axis for chart in shown.front.query(Chart) if chart.display)
        await shown.press("right_square_bracket")
        assert focused(shown).weight == 0.9

    run_app(home, again, target="one")
    settings = load_settings()[0]
    assert (settings.smoothing, settings.log_axes, settings.charts) == (0.9, False, {})


def test_there_are_nine_charts_where_there_is_room(home: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.reaches("MonitorScreen")
        await shown.shows("mine/a", "mine/i")
        assert len(titles(shown)) == 9
        regions = [chart.region for chart in shown.front.query(Chart) if chart.display]
        assert len({region.x for region in regions}) == len({region.y for region in regions}) == 3

    run_app(home, script, size=(200, 60), target="one")


def test_a_metric_is_found_by_name_or_expression_and_pinned(home: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.reaches("MonitorScreen")
        await shown.shows("mine/a")
        await shown.press("m")
        await shown.fill("mine/g")
        await shown.press("enter")
        await shown.until(lambda: focused(shown).title == "mine/g" if isinstance(focused(shown), Chart) else False)
        assert titles(shown) == ["mine/g", "mine/h"]
        await shown.press("asterisk")
        assert "pinned" in focused(shown).rows[0]
        await shown.press("right_square_bracket")
        assert titles(shown)[0] == "mine/g" and "mine/h" not in titles(shown)
        await shown.press("m")
        await shown.fill("mine/[bd]$")
        await shown.press("enter")
        await shown.until(lambda: titles(shown) == ["mine/b", "mine/d"])
        assert "only mine/[bd]$" in shown.lines[0]
        await shown.press("m")
        await shown.until(lambda: shown.name == "PickScreen")
        await shown.press("enter")
        await shown.until(lambda: titles(shown)[0] == "mine/g")

    run_app(home, script, target="one")
    assert load_settings()[0].pinned == ["mine/g"]


def test_the_x_axis_goes_through_those_that_the_run_has(home: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.reaches("MonitorScreen")
        await shown.shows("mine/a")
        seen = []
        for _ in range(3):
            await shown.press("X")
            seen.append((focused(shown).x, focused(shown).curves[0].series.span[1]))
        assert [axis for axis, _ in seen] == ["time", "tokens", "step"]
        assert [stop for _, stop in seen[1:]] == [300.0, 3.0]

    run_app(home, script, target="one")


def test_charts_in_sight_are_exported(home: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.reaches("MonitorScreen")
        await shown.shows("mine/a")
        await shown.press("s", "E")
        await shown.notified("saved", ".csv", ".svg")

    run_app(home, script, target="one")
    table, picture = sorted(exports_dir().iterdir())
    assert re.fullmatch(r"one-monitor-[\d-]+\.csv", table.name) and picture.name == table.stem + ".svg"
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["chart"] for row in rows} == {"mine/a", "mine/b"} and {row["run"] for row in rows} == {"one"}
    assert [(row["place"], row["value"]) for row in rows if row["chart"] == "mine/a"] == [
        ("1", "1.0"),
        ("2", "2.0"),
        ("3", "3.0"),
    ]
    assert [bool(row["smoothed"]) for row in rows] == [True] * 3 + [False] * 3
    root = ElementTree.parse(picture).getroot()
    assert root.attrib["width"] == "1280" and "mine/b" in "".join(root.itertext())


def test_comparison_has_progress_pins_and_find(home: Home) -> None:
    write_metrics(make_run(home, Stage.SFT, "long"), {name: [1.0] * 6 for name in METRICS})

    async def script(driven: Driven) -> None:
        await driven.shows("mine/a")
        chart = driven.screen.query(Chart).first()
        await driven.press("X")
        assert chart.x == "progress" and [curve.series.span[1] for curve in chart.curves] == [100.0, 100.0]
        assert "by progress" in chart.rows[0]
        await driven.press("E")
        await driven.until(lambda: exports_dir().is_dir() and len(list(exports_dir().iterdir())) == 2)
        await driven.press("m")
        await driven.type("mine/j")
        await driven.press("enter")
        await driven.until(lambda: focused(driven).title == "mine/j" if isinstance(focused(driven), Chart) else False)

    drive(home, lambda: CompareScreen(home, ["one", "long"]), script)
    assert all(file.name.startswith("one_long-compare-") for file in exports_dir().iterdir())


def test_pinned_charts_stay_in_sight_and_leave_a_place() -> None:
    charts = {title: "" for title in "abcdef"}
    board = Board(["d", "e"])
    assert board.arrange(charts, 4) == ["d", "e", "a", "b"] and board.pages == 2
    board.turn(1)
    assert board.arrange(charts, 4) == ["d", "e", "c", "f"]
    assert board.arrange(charts, 2) == ["d", "a"] and board.pages == 5  # `e`, `a`, …: the page is still the second
    assert Board(["d"]).arrange(charts, 1) == ["d"]
    board.pattern = re.compile("[ab]")
    assert board.arrange(charts, 4) == ["a", "b"]


def test_a_third_column_or_row_needs_room() -> None:
    assert (shape(119, 35, (2, 2)), shape(120, 35, (2, 2)), shape(120, 36, (2, 2))) == ((2, 2), (3, 2), (3, 3))


def test_all_looks_change_together_and_old_settings_are_read(tmp_path: Path) -> None:
    settings = Settings(smoothing=0.6, charts={"kl": ChartSettings(log=True, smoothing=0.9)})
    looks = Looks(settings)
    kl, loss = looks.of("kl"), looks.of("loss")
    assert (kl.log, kl.weight, loss.log, loss.weight) == (True, 0.9, False, 0.6)
    looks.log_all(loss)
    assert kl.log and loss.log and settings.charts == {"kl": ChartSettings(smoothing=0.9)}
    assert not looks.store() and settings.log_axes
    file = tmp_path / "settings.json"
    assert save_settings(settings, file) is None and load_settings(file) == (settings, None)
    file.write_text('{"smoothing": 7.0}')
    assert Looks(load_settings(file)[0]).of("kl").weight == 0.0


def test_times_are_ticked_as_people_count_them() -> None:
    assert [label for _, label in x_ticks(0, 7200, 50, "time")] == ["0", "30m", "1h", "1h30m", "2h"]
    assert [label for _, label in x_ticks(0, 100, 50, "progress")] == ["0%", "20%", "40%", "60%", "80%", "100%"]
    assert [label for _, label in x_ticks(0, 20 * 86400, 50, "time")][:2] == ["0", "4d"]
    assert [x_label(3900, axis) for axis in ("time", "step", "tokens")] == ["1 h 05 m", "step 3,900", "3,900 tokens"]
