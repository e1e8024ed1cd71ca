"""Stop, save, resume and delete with runs selected: they act on these, and the question names them."""

from typing import Any

import pytest
from tests.tui.app_kit import Shown, run_app
from tests.tui.screens_kit import make_run

from stackllama_console.tui.widgets.key_line import KeyLine
from stackllama_engine.contract.errors import RefusedError
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher, run_requests


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record what was asked of runs, in the place of the real thing."""
    calls: list[str] = []

    def stop(run: Any, *, wait: bool) -> Any:
        calls.append(f"stop {run.id}")
        return run.read_state()

    monkeypatch.setattr(run_requests, "stop", stop)
    monkeypatch.setattr(launcher, "resume", lambda home, run_id, **_: calls.append(f"resume {run_id}"))
    return calls


async def _select(shown: Shown, *rows: int) -> None:
    """Select rows by number, and leave the cursor on the first row."""
    await shown.shows("tuned")
    for row in rows:
        await shown.press("g", *"j" * row, "space")
    await shown.press("g")


def test_keys_act_on_the_selection_and_the_question_names_it(stocked: Home, calls: list[str]) -> None:
    async def script(shown: Shown) -> None:
        await _select(shown, 1, 2)  # alive, broken; the cursor is on `aligned`
        assert shown.front.row_id == "aligned"
        await shown.shows("x, w, r, D act on the 2 selected")
        offered = shown.front.query_one(KeyLine).plain
        assert "x stop" in offered and "r resume" in offered and "c compare" in offered
        await shown.press("x")
        await shown.shows("Stop 1 run?", "alive", "Left alone:", "broken has already ended: failed", "y  stop 1 run")
        await shown.press("n")
        assert calls == []
        await shown.press("x", "y")
        await shown.notified("asked to save and stop: alive")
        await shown.press("r")
        await shown.shows("Resume 1 run?", "broken", "alive is running")
        await shown.press("y")
        await shown.notified("resumed: broken")
        await shown.press("w")
        await shown.shows("Save a checkpoint of 1 run?", "broken has ended (failed): there is nothing to save")
        await shown.press("y")
        await shown.notified("will save a checkpoint: alive")
        assert calls == ["stop alive", "resume broken"]
        assert list(stocked.run("alive").requests()) == ["save"]

    run_app(stocked, script)


def test_several_runs_are_deleted_after_one_question(stocked: Home) -> None:
    make_run(stocked, Stage.PPO, "child-of-tuned", parents=["tuned"])

    async def script(shown: Shown) -> None:
        await shown.shows("child-of-tuned")
        await _select(shown, 2, 4)  # broken, tuned
        await shown.press("D")
        await shown.shows("Delete 2 runs?", "broken, tuned", "cannot be undone", "child-of-tuned")
        await shown.press("y")
        await shown.notified("deleted: broken, tuned")
        await shown.until(lambda: not shown.front.selected)
        assert {run.id for run in stocked.runs()} == {"alive", "aligned", "child-of-tuned"}

    run_app(stocked, script)


def test_a_pipeline_and_its_stage_are_deleted_once(stocked: Home) -> None:
    make_run(stocked, Stage.PIPELINE, "whole")
    for suffix, stage in (("sft", Stage.SFT), ("ppo", Stage.PPO)):
        make_run(stocked, stage, f"whole-{suffix}", parents=["whole"])

    async def script(shown: Shown) -> None:
        await shown.shows("whole", "└ ppo")
        await _select(shown, 4, 5)  # whole and its SFT
        await shown.press("D")
        await shown.shows("Delete 2 runs?", "whole, whole-sft", "deleted too: whole-ppo")
        await shown.press("y")
        await shown.notified("deleted: whole, whole-sft")
        assert {run.id for run in stocked.runs()} == {"aligned", "alive", "broken", "tuned"}

    run_app(stocked, script)


def test_nothing_is_asked_where_no_selected_run_can(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await _select(shown, 2, 3)  # broken, tuned
        await shown.press("x")
        await shown.notified("broken has already ended: failed; tuned has already ended: finished")
        assert shown.name == "RunsScreen"

    run_app(stocked, script)


def test_one_refusal_does_not_keep_the_others(stocked: Home, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(stocked, Stage.SFT, "stopped", phase="stopped")

    def resume(_home: Home, run_id: str, **_: Any) -> None:
        if run_id == "broken":
            raise RefusedError("no room")
        calls.append(run_id)

    monkeypatch.setattr(launcher, "resume", resume)

    async def script(shown: Shown) -> None:
        await shown.shows("stopped")
        await _select(shown, 2, 3)
        await shown.press("r", "y")
        await shown.notified("resumed: stopped")
        await shown.notified("no room")
        assert calls == ["stopped"]

    run_app(stocked, script)
