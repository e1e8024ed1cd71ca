"""Sort, columns, groups and filter of the list of runs under keys; tags, notes and titles."""

import pytest
from tests.tui.app_kit import Shown, run_app
from tests.tui.screens_kit import make_run
from textual.widgets import Input

from stackllama_console.settings import load_settings
from stackllama_console.tui.widgets.runs_table import RunsTable
from stackllama_engine.contract.labels import Labels, read_labels
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage

ROWS = ["aligned", "alive", "broken", "tuned"]


def _ids(shown: Shown) -> list[str]:
    return [row.id for row in shown.front._shown]


async def _choose(shown: Shown, key: str, name: str) -> None:
    """Open a dialog of choices and take the one that begins with a name."""
    await shown.press(key)
    await shown.reaches("ChooseScreen")
    position = [value for value, _ in shown.front._choices].index(name)
    await shown.press("g", *"j" * position, "enter")
    await shown.reaches("RunsScreen")


def test_runs_are_sorted_by_a_column_and_the_choice_is_kept(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("tuned")
        await _choose(shown, "S", "loss")
        await shown.until(lambda: _ids(shown) == ["alive", "tuned", "broken", "aligned"])  # 2, 1, 0.6, none
        assert "by loss ↓" in shown.lines[0]
        await _choose(shown, "S", "loss")
        await shown.until(lambda: _ids(shown)[:2] == ["broken", "tuned"])
        await _choose(shown, "S", "stage")
        await shown.until(lambda: _ids(shown) == ["aligned", "broken", "alive", "tuned"])

    run_app(stocked, script)

    async def again(shown: Shown) -> None:
        await shown.shows("by stage ↑")
        await _choose(shown, "S", "newest first")
        await shown.until(lambda: _ids(shown) == ROWS)

    run_app(stocked, again)
    assert load_settings()[0].runs_sort == ""


def test_columns_are_chosen_and_those_without_room_are_left_out(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("tuned")
        await shown.press("C")
        await shown.shows("■ state", "· duration", "· KL")
        await shown.press("g", "space", *"j" * 6, "space", *"jjj", "space", *"jjj", "space", "enter")
        await shown.reaches("RunsScreen")
        await shown.until(lambda: "duration" in shown.lines[1])
        header = shown.lines[1].split()
        assert header == ["run", "stage", "state", "duration", "KL", "trend", "last"]  # what was added stays longer
        assert "no room for" in shown.lines[0]
        await shown.pilot.resize_terminal(160, 24)
        await shown.until(lambda: "trend" in shown.lines[1])
        header = shown.lines[1].split()
        assert header == ["run", "stage", "state", "step", "age", "duration", "KL", "trend", "last"]
        line = next(line for line in shown.lines if " aligned " in line)
        assert "1m" in line and "▁▂" in line
        await shown.press("C", "d")
        await shown.until(lambda: "model" in shown.lines[1] and "trend" not in shown.lines[1])

    run_app(stocked, script)


def test_groups_follow_one_another(stocked: Home) -> None:
    make_run(stocked, Stage.PIPELINE, "whole")
    make_run(stocked, Stage.SFT, "whole-sft", parents=["whole"])

    async def script(shown: Shown) -> None:
        await shown.shows("└ sft")
        await shown.press("b")
        await shown.until(lambda: "grouped by stage" in shown.lines[0])
        assert _ids(shown) == ["whole", "aligned", "broken", "alive", "tuned", "whole-sft"]
        assert any(line.split()[:2] == ["sft", "3"] for line in shown.lines) and "whole-sft" in shown.text
        await shown.press("z")
        await shown.notified("fold where runs are grouped by pipeline")
        await shown.press("b", "b")
        await shown.until(lambda: "not grouped" in shown.lines[0])
        await shown.press("b")
        await shown.shows("└ sft")

    run_app(stocked, script)


def test_filter_counts_what_matches_and_names_what_it_does_not_know(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("tuned")
        await shown.press("slash")
        await shown.fill("state:finished -stage:ppo loss<2")
        await shown.until(lambda: _ids(shown) == ["tuned"])
        assert "(1 of 4)" in shown.lines[0]
        await shown.fill("colour:red")
        await shown.shows("! no field `colour`; fields are state, stage, tag")
        assert _ids(shown) == ROWS

    run_app(stocked, script)


def test_cursor_returns_to_its_run_after_a_filter_that_matches_none(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("tuned")
        await shown.press("j", "j")
        table = shown.app.screen.query_one(RunsTable)
        under = table.current
        assert under is not None and under.id == ROWS[2]
        await shown.press("slash")
        await shown.fill("nothing like it")
        await shown.until(lambda: _ids(shown) == [] and table.current is None)
        await shown.press("escape")
        await shown.until(lambda: _ids(shown) == ROWS)
        assert table.current is not None and table.current.id == under.id

    run_app(stocked, script)


def test_tags_note_and_title_are_kept_beside_the_run(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("tuned")
        await shown.press("space", "space", "number_sign")
        await shown.shows("Tags of 2 selected runs")
        await shown.fill("a:b")
        await shown.press("enter")
        await shown.shows("! `a:b` cannot be a tag")
        await shown.fill("paper old")
        await shown.press("enter")
        await shown.notified("2 runs tagged")
        await shown.press("escape", "g")
        await shown.shows("#paper #old")
        await shown.press("number_sign")
        await shown.shows("now: paper old")
        await shown.fill("-old")
        await shown.press("enter")
        await shown.notified("aligned: tags: paper")
        await shown.press("i")
        await shown.fill("best so far")
        await shown.press("enter")
        await shown.notified("note kept")
        await shown.press("R")
        await shown.shows("Title of aligned", "its id stays")
        await shown.fill("Baseline")
        await shown.press("enter")
        await shown.notified("aligned: title: Baseline")
        await shown.shows("  Baseline ", "Baseline  #paper  best so far", "aligned  ppo")
        await shown.press("R")
        await shown.until(lambda: isinstance(shown.app.focused, Input) and shown.app.focused.value == "Baseline")
        await shown.press("escape", "slash")
        await shown.fill("tag:old")
        await shown.until(lambda: _ids(shown) == ["alive"])

    run_app(stocked, script)
    assert read_labels(stocked.run("aligned")) == Labels("Baseline", ("paper",), "best so far")


@pytest.mark.parametrize("size", [(20, 5), (40, 12)])
def test_dialogs_open_at_any_size(stocked: Home, size: tuple[int, int]) -> None:
    async def script(shown: Shown) -> None:
        await shown.until(lambda: len(shown.front._shown) == 4)
        for key in ("S", "C", "number_sign", "i", "R"):
            await shown.press(key)
            shown.assert_clean()
            await shown.press("escape")
            await shown.reaches("RunsScreen")
        await shown.press("b", "b", "b", "b")
        shown.assert_clean()

    run_app(stocked, script, size=size)
