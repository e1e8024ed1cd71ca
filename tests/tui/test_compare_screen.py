"""The comparison under keys: curves of shared metrics, recipes that differ, values, hostile text, small sizes."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.cli.conftest import PAYLOADS
from tests.tui.screens_kit import Driven, drive, isolate, make_run, write_metrics

from stackllama_console.readers.comparison import short_names
from stackllama_console.readers.comparison_rows import best_of, without_shared_folder
from stackllama_console.readers.series import Series
from stackllama_console.tui.screens.compare import CompareScreen
from stackllama_console.tui.widgets.cells import cut_middle
from stackllama_console.tui.widgets.chart import Chart
from stackllama_console.tui.widgets.chart_grid import ChartGrid
from stackllama_console.tui.widgets.facts_table import FactsTable
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage

IDS = ["sweep-lr4-a1-ppo", "sweep-lr6-b2-ppo"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Make two PPO runs with one metric of their own each."""
    home = isolate(tmp_path, monkeypatch)
    first = make_run(home, Stage.PPO, IDS[0], "learning_rate=0.0004", versions={"torch": "2.1"}, git_commit="a" * 40)
    second = make_run(
        home, Stage.PPO, IDS[1], "learning_rate=0.0006", "seed=7", versions={"torch": "2.2"}, git_commit="b" * 40
    )
    scores = {"val/ratio": [1.0, 1.1], "objective/kl": [0.5, 0.25], "objective/scores": [1.0, 3.0, 2.0]}
    write_metrics(first, {**scores, "only/first": [1.0]})
    write_metrics(second, {**scores, "objective/scores": [1.5, 2.5], "only/second": [1.0]})
    first.write_json("result.json", {"after": {"true_utility": 0.5}, "samples": [{"reward_after": 1.0}]})
    second.write_json("result.json", {"after": {"true_utility": 0.75}})
    return home


def _compare(home: Home, ids: list[str] = IDS) -> Any:
    return lambda: CompareScreen(home, ids)


def _metrics(driven: Driven) -> list[str]:
    return [overlay.metric for overlay in driven.screen.query_one(ChartGrid).shown]


def test_charts_overlay_the_shared_metrics_the_most_telling_first(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("reward")
        assert [overlay.metric for overlay in driven.screen.query_one(ChartGrid).overlays] == [
            "objective/scores",
            "objective/kl",
            "val/ratio",
        ]
        assert _metrics(driven) == ["objective/scores", "objective/kl"]
        chart = driven.screen.query(Chart).first()
        assert [curve.label for curve in chart.curves] == ["lr4-a1-ppo", "lr6-b2-ppo"]
        assert "lr4-a1" in driven.text and "2 runs · ppo" in driven.lines[0] and "metrics 1/2" in driven.lines[0]
        assert "learning_rate" not in driven.text

    drive(home, _compare(home), script)


def test_brackets_turn_the_pages_round(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("reward")
        await driven.press("right_square_bracket")
        assert _metrics(driven) == ["val/ratio"] and "metrics 2/2" in driven.lines[0]
        await driven.press("right_square_bracket")
        assert _metrics(driven)[0] == "objective/scores"
        await driven.press("left_square_bracket")
        assert _metrics(driven) == ["val/ratio"]
        await driven.press("3", "left_square_bracket")
        assert driven.screen.view == "charts"

    drive(home, _compare(home), script)


def test_another_trainers_run_is_compared_as_well(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "other" / "trained-elsewhere"
    folder.mkdir(parents=True)
    logged = [{"step": step, "objective/scores": step / 2, "loss": 1.0} for step in (1, 2, 3)]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3, "max_steps": 3, "log_history": logged}))

    async def script(driven: Driven) -> None:
        await driven.shows("reward")
        await driven.press("o")
        await driven.type(str(tmp_path / "nothing"))
        await driven.press("enter")
        await driven.shows("no such directory")
        await driven.type(str(folder))
        await driven.press("enter")
        await driven.until(lambda: len(driven.screen.query(Chart).first().curves) == 3)
        assert driven.screen.query(Chart).first().curves[2].label == "trained-elsewhere"
        await driven.until(lambda: "compare  3 runs" in driven.lines[0])
        rows = {row.key: row.cells for row in driven.screen.query_one("#metrics", FactsTable).rows if row.cells}
        assert [cell.text for cell in rows["state"]] == ["finished"] * 3
        await driven.press("o", "escape")

    drive(home, _compare(home), script, size=(140, 40))


def test_names_that_begin_alike_are_cut_in_the_middle(home: Home) -> None:
    assert [cut_middle(f"ppo-llama-learning_rate-1e-5-seed-{seed}", 16) for seed in (1, 2)] == [
        "ppo-lla…5-seed-1",
        "ppo-lla…5-seed-2",
    ]
    assert [cut_middle("abcdefgh", width) for width in (8, 7, 5, 1)] == ["abcdefgh", "abc…fgh", "abcd…", "…"]


def test_the_charts_keys_work_at_once(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("reward")
        chart = driven.screen.query(Chart).first()
        await driven.until(lambda: chart.has_focus)
        await driven.press("y")
        assert chart.log_axis

    drive(home, _compare(home), script)


def test_recipe_view_lists_only_what_differs_and_dims_defaults(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("reward")
        await driven.press("2")
        table = driven.screen.query_one("#recipe", FactsTable)
        await driven.until(lambda: table.has_focus)
        rows = {row.key: row.cells for row in table.rows if row.cells}
        assert set(rows) == {"learning_rate", "seed", "git commit", "version: torch"}
        assert [cell.text for cell in rows["learning_rate"]] == ["0.0004", "0.0006"]
        assert [cell.tone for cell in rows["seed"]] == ["default", "plain"]
        assert [cell.text for cell in rows["git commit"]] == ["a" * 12, "b" * 12]
        line = next(line for line in driven.lines if line.startswith(" learning_rate"))
        assert "0.0004" in line and "0.0006" in line and "metrics 1/" not in driven.lines[0]  # of the charts
        assert "other keys are the same" in driven.text and "objective/scores" not in driven.text

    drive(home, _compare(home), script)


def test_metrics_view_shows_newest_and_best_of_each(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("reward")
        await driven.press("3")
        table = driven.screen.query_one("#metrics", FactsTable)
        rows = {row.key: row.cells for row in table.rows if row.cells}
        assert [cell.text for cell in rows["objective/scores"]] == ["2  ▲ 3 @2 ◂", "2.5  ▲ 2.5 @2"]
        assert [cell.text for cell in rows["objective/kl"]] == ["0.25", "0.25"]
        assert [cell.tone for cell in rows["after.true_utility"]] == ["plain", "best"]
        assert not any("samples" in key for key in rows)
        assert [cell.text for cell in rows["took"]] == ["1 m 00 s", "1 m 00 s"]
        await driven.press("1")
        assert driven.screen.query_one(ChartGrid).display and "▲ 3" not in driven.text

    drive(home, _compare(home), script)


@pytest.mark.parametrize("width", [80, 60])
def test_only_the_best_value_stands_out_not_the_newest_beside_it(home: Home, width: int) -> None:
    async def script(driven: Driven) -> None:
        await driven.until(lambda: driven.screen.query_one(ChartGrid).overlays)
        await driven.press("3")
        table = driven.screen.query_one("#metrics", FactsTable)
        pieces = {text.strip(): tone for line in table._lines for text, tone in line}
        assert pieces["2"] == "plain" and pieces["▲ 3 @2 ◂"] == "best"

    drive(home, _compare(home), script, (width, 24))


def test_from_120_columns_all_three_views_are_shown(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("objective/scores", "reward", "learning_rate", "after.true_utility", "lr4-a1")
        await driven.press("2")
        assert driven.screen.query_one("#recipe").has_focus and "objective/kl" in driven.text
        await driven.press("3")
        assert driven.screen.query_one("#metrics").has_focus

    drive(home, _compare(home), script, (160, 45))


def test_curves_of_a_live_run_grow(home: Home) -> None:
    run = home.run(IDS[1])

    async def script(driven: Driven) -> None:
        await driven.shows("reward")
        write_metrics(run, {"objective/scores": [9.0] * 5})
        await driven.press("3")
        await driven.shows("▲ 9 @1")
        chart = driven.screen.query(Chart).first()
        await driven.press("1")
        await driven.until(lambda: "5" in chart.rows[-1])

    drive(home, _compare(home), script)


def test_tables_scroll_by_line_page_and_end_and_shift_between_runs(home: Home) -> None:
    for index in range(5):
        run = make_run(home, Stage.PPO, f"sweep-more{index}-ppo", f"seed={index}")
        write_metrics(run, {f"metric/{number}": [float(number)] for number in range(40)})
    ids = [f"sweep-more{index}-ppo" for index in range(5)]

    async def script(driven: Driven) -> None:
        await driven.shows("metric/0")
        await driven.press("3")
        table = driven.screen.query_one("#metrics", FactsTable)
        tops: list[int] = []
        for key in ("j", "k", "G", "g", "ctrl+d", "ctrl+u"):
            await driven.press(key)
            tops.append(table.scroll_offset.y)
        assert tops[:2] == [1, 0] and tops[2] > 20 and tops[3] == 0 and tops[4] > 10 and tops[5] == 0
        assert "more0" in driven.text and "more4" not in driven.text and "›" in driven.text
        await driven.press("l", "l", "l", "l", "l")
        assert "more4" in driven.text and "more0" not in driven.text and "‹" in driven.text
        await driven.press("h", "h", "h", "h")
        assert "more0" in driven.text

    drive(home, lambda: CompareScreen(home, ids), script)


def test_different_stages_and_missing_runs_are_reported(home: Home) -> None:
    make_run(home, Stage.MERGE, "sweep-merge", versions={"torch": "2.3"})

    async def script(driven: Driven) -> None:
        await driven.shows("No run `sweep-gone`")
        await driven.press("2")
        await driven.shows("bfloat16")
        rows = driven.screen.query_one("#recipe", FactsTable).rows
        found = {row.key: [cell.text for cell in row.cells] for row in rows}
        assert found["adapter_path"] == ["·", "demo", "·"] and found["learning_rate"][1:] == ["·", "·"]
        assert list(found).index("version: torch") < list(found).index("adapter_path")  # what both have comes first

    drive(home, _compare(home, [IDS[0], "sweep-merge", "sweep-gone"]), script)


def test_damaged_files_are_one_line_each(home: Home) -> None:
    run = home.run(IDS[0])
    run.recipe_file.write_text("learning_rate: [")
    run.path.joinpath("launch.json").write_text("{")

    async def script(driven: Driven) -> None:
        await driven.shows("sweep-lr4-a1-ppo: recipe.yaml", "sweep-lr4-a1-ppo: launch.json")
        await driven.press("2")
        await driven.shows("Only one of the recipes could be read")

    drive(home, _compare(home), script)


@pytest.mark.parametrize(
    "size", [(80, 24), pytest.param((160, 45), marks=pytest.mark.slow), pytest.param((20, 5), marks=pytest.mark.slow)]
)
def test_hostile_text_is_plain_and_clean_on_every_view(home: Home, size: tuple[int, int]) -> None:
    for index, run_id in enumerate(IDS):
        run = home.run(run_id)
        write_metrics(run, {f"{payload}": [1.0, 2.0] for payload in PAYLOADS})
        launch = msgspec.json.decode(run.path.joinpath("launch.json").read_bytes())
        launch["versions"] = {payload: f"{payload}{index}" for payload in PAYLOADS}
        run.write_json("launch.json", launch)
        run.write_json("result.json", {payload: index for payload in PAYLOADS})

    async def script(driven: Driven) -> None:
        await driven.until(lambda: driven.screen.query_one(ChartGrid).overlays)
        for key in ("1", "right_square_bracket", "right_square_bracket", "2", "G", "3", "G"):
            await driven.press(key)
            driven.assert_clean()
        assert driven.app.screen is driven.screen

    drive(home, _compare(home), script, size)


@pytest.mark.slow
def test_resizing_to_nothing_and_back_survives(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("reward")
        for size in ((20, 5), (1, 1), (160, 45), (80, 24)):
            await driven.pilot.resize_terminal(*size)
            await driven.press("1", "2", "3")
            driven.assert_clean()
        await driven.shows("after.true_utility")

    drive(home, _compare(home), script)


def test_names_lose_only_the_words_they_begin_with() -> None:
    assert short_names(["p-20261124-a1-ppo", "p-20261124-b2-ppo"]) == ["a1-ppo", "b2-ppo"]
    assert short_names(["p-a1-sft", "p-b2-sft"], {"b2-sft"}) == ["p-a1-sft", "p-b2-sft"]
    assert short_names(["p-10", "p-11"]) == ["10", "11"]
    assert short_names(["p-x-sft", "p-x-ppo"]) == ["sft", "ppo"]
    assert short_names(["run", "run-2"]) == ["run", "run-2"]
    assert short_names(["a.b_c"]) == ["a.b_c"]
    assert short_names(["a-b-c", "a_b_c"]) == ["a-b-c", "a_b_c"]


def test_paths_lose_what_they_share() -> None:
    assert without_shared_folder(["/h/runs/p-a1-sft/merged", "/h/runs/p-b2-sft/merged"]) == [
        "…a1-sft/merged",
        "…b2-sft/merged",
    ]
    assert without_shared_folder(["/h/a", None, "/h/b"]) == ["…a", None, "…b"]
    assert without_shared_folder(["demo", "/h/b"]) == ["demo", "/h/b"]
    assert without_shared_folder(["/h/a/", "/h/a/b"]) == ["/h/a/", "/h/a/b"]


@pytest.mark.parametrize("name", ["loss", "objective/scores"])
def test_the_best_point_is_found_wherever_it_lies(name: str) -> None:
    choose = min if name == "loss" else max
    for place in (0, 1, 6, 7, 12):
        values = [5.0] * 13
        values[place] = -1.0 if name == "loss" else 9.0
        series = Series(name)
        series.extend([float(step * 3) for step in range(13)], values)
        assert best_of(name, series) == (place * 3.0, choose(values))
    assert best_of("learning_rate", series) is None
    assert best_of(name, Series(name)) is None


def test_charts_have_the_monitors_titles_and_units(home: Home) -> None:
    for run_id in IDS:
        write_metrics(home.run(run_id), {"tokens_per_second": [15_300.0], "gpu/mean/memory": [2.0**30], "other": [1.0]})

    async def script(driven: Driven) -> None:
        await driven.shows("reward")
        overlays = {overlay.metric: overlay for overlay in driven.screen.query_one(ChartGrid).overlays}
        said = {name: (overlay.title, overlay.unit) for name, overlay in overlays.items()}
        assert said == {
            "objective/scores": ("reward", "number"),
            "objective/kl": ("KL", "number"),
            "val/ratio": ("ratio", "number"),
            "tokens_per_second": ("tokens/s", "tokens/s"),
            "gpu/mean/memory": ("GPU memory of this run, mean", "bytes"),
            "other": ("other", "number"),
        }
        driven.screen.go_to_chart("tokens/s")
        assert {"tokens/s"} == {chart.unit for chart in driven.screen.query(Chart) if chart.title == "tokens/s"}
        assert driven.screen.charts_by_title()["tokens/s"] == "tokens_per_second"

    drive(home, _compare(home), script)


def test_a_result_that_is_noise_beside_its_pair_is_nothing(home: Home) -> None:
    for run_id in IDS:
        home.run(run_id).write_json("result.json", {"before": {"kl": -2.59e-8}, "after": {"kl": 1.7155}})

    async def script(driven: Driven) -> None:
        await driven.press("3")
        await driven.shows("after.kl")
        rows = {row.key: row.cells for row in driven.screen.query_one("#metrics", FactsTable).rows if row.cells}
        assert [cell.text for cell in rows["before.kl"]] == ["0", "0"]
        assert [cell.text for cell in rows["after.kl"]] == ["1.7155", "1.7155"]

    drive(home, _compare(home), script)


def test_a_run_that_is_not_on_the_x_axis_is_named(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    logged = [{"step": step, "objective/scores": step / 2} for step in (1, 2)]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 2, "max_steps": 2, "log_history": logged}))

    async def script(driven: Driven) -> None:
        await driven.until(lambda: len(driven.screen.query(Chart).first().curves) == 2)
        assert "not drawn" not in driven.lines[0]
        while driven.screen.places.axis != "time":
            await driven.press("X")
        await driven.until(lambda: "no times, so not drawn: elsewhere" in driven.lines[0])
        assert len(driven.screen.query(Chart).first().curves) == 1

    drive(home, _compare(home, [IDS[0], str(folder)]), script, size=(120, 30))
