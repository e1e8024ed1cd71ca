"""The list of runs under keys: what it shows, filter, selection, folding, and everything that can be done to a run."""

import shutil
import socket
from typing import Any

import msgspec
import pytest
from tests.tui.app_kit import Shown, run_app
from tests.tui.conftest import snapshot
from tests.tui.screens_kit import isolate, make_run, write_metrics

from stackllama_console.tui.widgets.key_line import KeyLine
from stackllama_engine.contract.errors import RefusedError
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher, run_requests
from stackllama_engine.launch.function_hash import FunctionChangedError
from stackllama_engine.launch.recipe_changes import RecipeChangedError

ROWS = ["aligned", "alive", "broken", "tuned"]  # all were created in the same second: by name


def _ids(shown: Shown) -> list[str]:
    return [row.id for row in shown.front._shown]


async def _ready(shown: Shown) -> None:
    await shown.shows("tuned")


def test_each_run_has_state_step_and_last_metric(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await _ready(shown)
        assert _ids(shown) == ROWS
        lines = {name: next(line for line in shown.lines if f"  {name} " in line) for name in ROWS}
        assert "ppo" in lines["aligned"] and "✓ finished" in lines["aligned"] and "reward 2" in lines["aligned"]
        assert "● running" in lines["alive"] and "40" in lines["alive"] and "loss 2" in lines["alive"]
        assert "✗ failed" in lines["broken"] and "accuracy 0.6" in lines["broken"]
        assert "1 alive" in shown.lines[0] and "runs  4" in shown.lines[0]
        assert "model" not in shown.lines[1]

    run_app(stocked, script)


def test_the_cursor_goes_once_to_a_run_that_was_launched(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await _ready(shown)
        assert shown.front.row_id == "aligned"
        shown.app.launched = "fresh"
        make_run(stocked, Stage.SFT, "fresh", phase="running")
        await shown.until(lambda: shown.front.row_id == "fresh")
        await shown.press("g")
        make_run(stocked, Stage.SFT, "later", phase="running")
        await shown.shows(" later ")
        assert shown.front.row_id == "aligned"

    run_app(stocked, script)


def test_more_columns_where_there_is_room_fewer_where_not(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await _ready(shown)
        for size, there, gone in (
            ((160, 45), ("run", "stage", "model", "state", "step", "age", "last"), ()),
            ((70, 24), ("run", "state", "step", "age", "last"), ("stage", "model")),
            ((50, 12), ("run", "state", "step", "last"), ("stage", "model", "age")),
            ((40, 12), ("run", "state", "last"), ("step", "age")),
            ((80, 24), ("run", "stage", "state", "step", "age", "last"), ("model",)),
        ):
            await shown.pilot.resize_terminal(*size)
            await shown.until(lambda size=size: shown.app.size == size)
            await shown.pilot.pause()
            header = shown.lines[1].split()
            assert [name for name in there if name not in header] == [] and not set(gone) & set(header)
            assert "aligned" in shown.text

    run_app(stocked, script)


@pytest.mark.parametrize(
    "size", [(20, 5), *(pytest.param(size, marks=pytest.mark.slow) for size in ((1, 1), (40, 12), (160, 45)))]
)
def test_no_size_is_too_small(stocked: Home, size: tuple[int, int]) -> None:
    async def script(shown: Shown) -> None:
        await shown.until(lambda: len(shown.front._shown) == 4)
        await shown.press("j", "space", "k", "slash", "escape", "question_mark", "escape", "x", "n")
        shown.assert_clean()

    run_app(stocked, script, size=size)


def test_an_empty_home_says_what_to_do(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    home = isolate(tmp_path, monkeypatch)

    async def script(shown: Shown) -> None:
        await shown.shows("No runs here yet", "launch your own")
        for key in "xwreatDcz ":
            await shown.press("space" if key == " " else key)
        assert "no run is selected" in shown.said
        make_run(home, Stage.SFT, "newcomer")
        await shown.shows("newcomer")
        assert "No runs here yet" not in shown.text

    run_app(home, script)


def test_footer_of_an_empty_list_offers_no_key_of_a_run_even_after_help(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("No runs here yet")
        await shown.press("question_mark")
        await shown.reaches("HelpScreen")
        await shown.press("escape")
        await shown.reaches("RunsScreen")
        assert shown.front.query_one(KeyLine).plain == "d demo  n launch  / filter  ? help  q quit"

    run_app(isolate(tmp_path, monkeypatch), script)


def test_footer_offers_what_the_run_under_the_cursor_can_do(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await _ready(shown)
        line = shown.front.query_one(KeyLine)
        assert line.plain == "⏎ open  n launch  a samples  space select  / filter  ? help  q quit"
        await shown.press("j")  # alive
        assert "x stop" in line.plain and "r resume" not in line.plain
        await shown.press("j")  # broken
        assert "r resume" in line.plain and "x stop" not in line.plain
        assert "samples" not in line.plain  # a reward run has none
        await shown.press("j")  # tuned
        await shown.shows("enter: open, t: chat, e: edit a copy")
        assert "samples" not in line.plain

    run_app(stocked, script)


def test_the_run_under_the_cursor_is_explained(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await _ready(shown)
        await shown.press("j", "j")
        await shown.shows("cause: out of memory in train", "r: start again: no checkpoint was saved")
        await shown.press("G")
        assert shown.front.row_id == "tuned"
        await shown.press("g")
        assert shown.front.row_id == "aligned"
        await shown.shows("a: samples")

    run_app(stocked, script)


def test_changes_are_shown_and_the_cursor_stays_on_its_run(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await _ready(shown)
        await shown.press("G")
        newer = make_run(stocked, Stage.REWARD, "a-newer")
        newer.write_state(msgspec.structs.replace(newer.read_state(), created=1_800_000_000.0))
        await shown.shows("a-newer")
        assert _ids(shown) == ["a-newer", *ROWS] and shown.front.row_id == "tuned"
        shutil.rmtree(newer.path)
        await shown.until(lambda: _ids(shown) == ROWS)
        assert shown.front.row_id == "tuned"
        alive = stocked.run("alive")
        write_metrics(alive, {"loss": [0.25]})
        await shown.shows("loss 0.25")

    run_app(stocked, script)


def test_the_filter_narrows_by_any_word_and_escape_ends_it(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await _ready(shown)
        await shown.press("slash")
        await shown.fill("sft finished")
        await shown.until(lambda: _ids(shown) == ["tuned"])
        assert "filter: sft finished" in shown.lines[0]
        await shown.press("enter")
        assert type(shown.app.focused).__name__ == "RunsTable"
        await shown.press("escape")
        await shown.until(lambda: _ids(shown) == ROWS)
        await shown.press("slash")
        await shown.fill("nothing like it")
        await shown.until(lambda: _ids(shown) == [])
        await shown.press("enter", "x")
        assert "no run is selected" in shown.said
        await shown.press("escape")
        await shown.until(lambda: _ids(shown) == ROWS)

    run_app(stocked, script)


def test_keys_typed_ahead_reach_the_filter(stocked: Home) -> None:
    """Type `o` and `x`: commands of the list, but text behind a slash in the same read."""

    async def script(shown: Shown) -> None:
        await _ready(shown)
        await shown.pilot._wait_for_screen()
        for character in ("slash", "b", "r", "o", "x"):
            await shown.pilot.press(character)
        await shown.until(lambda: shown.front.filter_text == "brox")
        assert shown.name == "RunsScreen"

    run_app(stocked, script)


def test_two_selected_runs_are_compared(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await _ready(shown)
        await shown.press("c")
        assert any("select two or more runs" in text for text in shown.said)
        await shown.press("space", "space", "space")
        assert list(shown.front.selected) == ["aligned", "alive", "broken"] and "3 selected" in shown.lines[0]
        assert sum("■ a" in line for line in shown.lines) == 2  # told by a mark, not by colour alone
        await shown.press("k", "k", "space")
        assert list(shown.front.selected) == ["aligned", "broken"]
        await shown.press("c")
        await shown.reaches("CompareScreen")
        await shown.press("escape", "escape")  # the notice, the screen
        await shown.reaches("RunsScreen")
        await shown.press("escape")
        assert not shown.front.selected

    run_app(stocked, script)


@pytest.fixture
def pipeline(stocked: Home) -> Home:
    parent = make_run(stocked, Stage.PIPELINE, "whole")
    parent.write_state(msgspec.structs.replace(parent.read_state(), created=1_800_000_000.0))
    for suffix, stage in (("sft", Stage.SFT), ("sft-merged", Stage.MERGE), ("ppo", Stage.PPO)):
        make_run(stocked, stage, f"whole-{suffix}", parents=["whole"])
    return stocked


def test_a_pipeline_is_a_tree_that_folds(pipeline: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("whole", "└ sft", "└ ppo")
        tree = ["whole", "whole-sft", "whole-sft-merged", "whole-ppo"]
        assert _ids(shown) == [*tree, *ROWS]
        await shown.press("j", "j", "z")
        assert _ids(shown) == ["whole", *ROWS] and "▸ whole" in shown.text
        await shown.press("g", "z")
        assert _ids(shown) == [*tree, *ROWS]
        await shown.press("G", "z")  # no pipeline: nothing to fold
        assert _ids(shown) == [*tree, *ROWS]

    run_app(pipeline, script)


@pytest.mark.parametrize(
    ("key", "screen", "text"),
    [
        ("enter", "MonitorScreen", "rollout 40"),
        ("n", "LaunchScreen", "model"),
        ("a", "SamplesScreen", "because 40"),
        ("e", "LaunchScreen", "cloned from aligned"),
        ("t", "ChatScreen", "nothing that was saved yet"),
    ],
)
def test_keys_lead_to_other_screens_and_escape_comes_back(stocked: Home, key: str, screen: str, text: str) -> None:
    async def script(shown: Shown) -> None:
        await _ready(shown)
        await shown.press(key)
        await shown.reaches(screen)
        await shown.shows(text)
        await shown.press("escape")
        if key == "t":  # the first leaves the line
            await shown.press("escape")
        await shown.reaches("RunsScreen")

    run_app(stocked, script)


def test_another_trainers_directory_is_asked_for(stocked: Home, tmp_path: Any) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "trainer_state.json").write_text('{"log_history": [{"step": 1, "loss": 0.5}], "global_step": 1}')

    async def script(shown: Shown) -> None:
        await _ready(shown)
        await shown.press("o", "escape")
        await shown.reaches("RunsScreen")
        await shown.press("o")
        await shown.fill(f"  {other} ")
        await shown.press("enter")
        await shown.reaches("MonitorScreen")
        await shown.shows("another trainer", "loss 0.5")
        await shown.press("escape", "o")
        await shown.fill(str(tmp_path / "none"))
        await shown.press("enter")
        await shown.until(lambda: "no such directory" in " ".join(shown.front.query_one("#state").plain.split()))

    run_app(stocked, script)


class Asked:
    """Records what was asked of runs, in the place of the real thing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        monkeypatch.setattr(run_requests, "stop", lambda run, *, wait: self._note("stop", run, wait))
        monkeypatch.setattr(launcher, "resume", lambda home, run_id, **_: self._note("resume", home.run(run_id)))

    def _note(self, what: str, run: RunDir, wait: bool = False) -> Any:
        assert not wait
        self.calls.append(f"{what} {run.id}")
        return run.read_state()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


def test_stop_asks_first_and_only_y_means_yes(stocked: Home, asked: Asked) -> None:
    async def script(shown: Shown) -> None:
        await _ready(shown)
        await shown.press("j")
        for no in ("n", "escape", "q"):
            await shown.press("x")
            await shown.shows("Stop alive?", "saves a checkpoint first")
            await shown.press("a", no)
            await shown.reaches("RunsScreen")
        assert asked.calls == []
        await shown.press("x", "y")
        await shown.notified("alive: asked to save and stop")
        assert asked.calls == ["stop alive"]
        await shown.press("G", "x")
        await shown.notified("tuned has already ended: finished")

    run_app(stocked, script)


def test_save_and_resume_are_requested_without_a_question(stocked: Home, asked: Asked) -> None:
    async def script(shown: Shown) -> None:
        await _ready(shown)
        await shown.press("j", "w")
        await shown.notified("alive will save a checkpoint after the current step")
        await shown.press("j", "w")
        await shown.notified("broken has ended (failed): there is nothing to save")
        await shown.press("r")
        await shown.notified("broken resumed")
        assert asked.calls == ["resume broken"] and list(stocked.run("alive").requests()) == ["save"]

    run_app(stocked, script)


def test_changed_code_is_asked_about_before_it_is_executed(stocked: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    resumed: list[bool] = []

    def resume(_home: Home, run_id: str, *, function_changed: bool = False, **_: object) -> None:
        if not function_changed:
            raise FunctionChangedError(run_id, "/code/judges.py has changed since the launch.")
        resumed.append(function_changed)

    monkeypatch.setattr(launcher, "resume", resume)

    async def script(shown: Shown) -> None:
        await _ready(shown)
        await shown.press("r")
        await shown.shows("/code/judges.py has changed since the launch.", "Run it as it is now?")
        await shown.press("n")
        await shown.reaches("RunsScreen")
        assert resumed == []
        await shown.press("r")
        await shown.shows("Run it as it is now?")
        await shown.press("y")
        await shown.notified("resumed")
        assert resumed == [True]

    run_app(stocked, script)


def test_refusals_are_notices_in_plain_text(stocked: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RefusedError("not now: [bold]busy[/bold] \x1b[2J")

    monkeypatch.setattr(launcher, "resume", refuse)

    async def script(shown: Shown) -> None:
        await _ready(shown)
        await shown.press("r")
        await shown.notified("not now: [bold]busy[/bold]")
        assert "\x1b" not in "".join(shown.said)

    run_app(stocked, script)


def test_a_recipe_that_changed_is_asked_about_before_a_resume(stocked: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []

    def resume(_home: Home, _run_id: str, *, recipe_changed: bool = False, **_: object) -> None:
        calls.append(recipe_changed)
        if not recipe_changed:
            raise RecipeChangedError(["Run `broken`: its recipe has changed since attempt 1: `seed` 0 → 8."])

    monkeypatch.setattr(launcher, "resume", resume)

    async def script(shown: Shown) -> None:
        await _ready(shown)
        await shown.press("j", "j", "r")
        await shown.shows("Resume with the current recipe?", "Run `broken`", "`seed`")
        await shown.press("n")
        await shown.reaches("RunsScreen")
        assert calls == [False]
        await shown.press("r")
        await shown.shows("Resume with the current recipe?")
        await shown.press("y")
        await shown.notified("broken resumed")
        assert calls == [False, False, True]

    run_app(stocked, script)


def test_delete_asks_names_what_depends_on_it_and_spares_the_living(stocked: Home) -> None:
    make_run(stocked, Stage.PPO, "child-of-tuned", parents=["tuned"])

    async def script(shown: Shown) -> None:
        await shown.shows("child-of-tuned")
        await shown.press("G", "D")
        await shown.shows("Delete tuned permanently?", "on disk", "no longer be resumed:", "child-of-tuned ")
        await shown.press("n")
        assert (stocked.runs_dir / "tuned").is_dir()
        await shown.press("D")
        await shown.shows("Delete tuned")
        await shown.press("y")
        await shown.notified("deleted: tuned")
        await shown.until(lambda: "tuned" not in _ids(shown))
        assert not (stocked.runs_dir / "tuned").exists()
        await shown.press("g", "j", "D")
        await shown.until(lambda: any("alive is running; stop it first" in text for text in shown.said))
        assert "Delete alive" not in "\n".join(shown.lines)
        assert (stocked.runs_dir / "alive").is_dir()

    run_app(stocked, script)


def test_deleting_a_pipeline_deletes_its_stages(pipeline: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.shows("whole")
        await shown.press("D")
        await shown.shows("Its 3 stages are deleted too")
        await shown.press("y")
        await shown.notified("deleted: whole and 3 of its stages")
        await shown.until(lambda: _ids(shown) == ROWS)

    run_app(pipeline, script)


def test_deleting_a_stage_does_not_speak_of_the_run_named_after_it(stocked: Home) -> None:
    make_run(stocked, Stage.MERGE, "tuned-merged", parents=["tuned"])

    async def script(shown: Shown) -> None:
        await shown.shows("tuned-merged")
        await shown.press("slash", *"tuned", "enter", "g", "D")
        await shown.shows("Delete tuned permanently?", "no longer be resumed:", "tuned-merged")
        assert "deleted too" not in shown.text
        await shown.press("y")
        await shown.notified("deleted: tuned")
        assert (stocked.runs_dir / "tuned-merged").exists()

    run_app(stocked, script)


def _damaged(home: Home) -> RunDir:
    """Make a damaged run, the first row: its recipe's age is all that is known of it."""
    run = make_run(home, Stage.SFT, "zzz")
    run.write_launch(msgspec.structs.replace(run.read_launch(), host=socket.gethostname()))
    (run.path / "state.json").write_text("{")
    return run


def test_damaged_run_shows_its_error_and_refuses_other_actions(stocked: Home) -> None:
    _damaged(stocked)
    before = snapshot(stocked.path)

    async def script(shown: Shown) -> None:
        await shown.shows("zzz", "! damaged", "D: delete")
        await shown.press("g")
        offered = shown.front.query_one(KeyLine).plain
        assert all(f" {label}" not in offered for label in ("open", "stop", "samples")) and "select" in offered
        for key in ("enter", "x", "w", "e", "a", "t"):
            await shown.press(key)
            await shown.until(lambda: any("state.json cannot be read" in text for text in shown.said))
            assert shown.name == "RunsScreen"
            await shown.press("escape")
            await shown.until(lambda: not shown.said)

    run_app(stocked, script)
    assert snapshot(stocked.path) == before


def test_a_damaged_run_is_repaired_in_place(stocked: Home) -> None:
    run = _damaged(stocked)

    async def script(shown: Shown) -> None:
        await shown.shows("zzz", "! damaged")
        await shown.press("g", "r")
        await shown.notified("state.json was rebuilt: sft, lost, attempt 1", "state.json.damaged-1")
        await shown.shows("? lost")

    run_app(stocked, script)
    assert run.read_state().phase == "lost" and (run.path / "state.json.damaged-1").read_text() == "{"


def test_a_damaged_run_is_deleted_after_asking(stocked: Home) -> None:
    run = _damaged(stocked)

    async def script(shown: Shown) -> None:
        await shown.shows("zzz", "! damaged")
        await shown.press("g", "D")
        await shown.reaches("ConfirmScreen")
        await shown.press("y")
        await shown.notified("deleted: zzz")

    run_app(stocked, script)
    assert not run.path.exists()


def test_viewing_changes_no_file(stocked: Home) -> None:
    before = snapshot(stocked.path)

    async def script(shown: Shown) -> None:
        await _ready(shown)
        await shown.press("enter")
        await shown.reaches("MonitorScreen")
        await shown.shows("rollout 40")
        await shown.press("escape", "a")
        await shown.shows("because")
        await shown.press("escape")

    run_app(stocked, script)
    assert snapshot(stocked.path) == before
