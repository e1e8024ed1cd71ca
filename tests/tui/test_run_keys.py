"""The keys that a run's stage and phase allow, and their words, agree with what the actions do."""

import os
from pathlib import Path

import pytest
from tests.tui.app_kit import Shown, run_app
from tests.tui.screens_kit import isolate, make_run

from stackllama_console.readers import samples_browser
from stackllama_console.readers.run_row import Row
from stackllama_console.tui.run_keys import advice_of_run, run_keys
from stackllama_console.tui.screens.help import keys_text
from stackllama_console.tui.widgets.outcome import advice
from stackllama_console.tui.widgets.run_lines import about_lines
from stackllama_engine.contract.chat_target import find_target
from stackllama_engine.contract.errors import RefusedError, StackllamaError
from stackllama_engine.contract.requests import Ask, check
from stackllama_engine.contract.run_dir import ENDED, Home, RunDir, State
from stackllama_engine.contract.stages import Stage

_REQUESTS = frozenset({"save", "pause", "sample", "change"})
_ON_RUN = {"stop", "save", "resume", "clone", "fork", "samples", "chat", "delete"}
_ACTING = {
    "RunsScreen": {*_ON_RUN, "open", "select", "fold", "tag", "note", "rename"},
    "MonitorScreen": {*_ON_RUN, "pause", "sample", "change", "fix", "child", "child_back"},
}


@pytest.mark.parametrize(
    ("stage", "phase", "keys"),
    [
        (Stage.PPO, "finished", {"open", "clone", "fork", "delete", "samples", "chat"}),
        (Stage.PPO, "running", {"open", "clone", "fork", "stop", "samples", "chat", *_REQUESTS}),
        (Stage.PPO, "stopping", {"open", "clone", "fork", "stop", "samples", "chat"}),
        (Stage.PPO, "queued", {"open", "clone", "stop", "samples"}),
        (Stage.SFT, "failed", {"open", "clone", "fork", "delete", "resume", "chat"}),
        (Stage.REWARD, "finished", {"open", "clone", "fork", "delete"}),
        (Stage.REWARD, "running", {"open", "clone", "fork", "stop", *_REQUESTS} - {"sample"}),
        (Stage.MERGE, "finished", {"open", "clone", "delete", "chat"}),
        (Stage.MERGE, "running", {"open", "clone", "stop"}),
        (Stage.PIPELINE, "stopped", {"open", "clone", "delete", "resume", "fold"}),
        (Stage.PIPELINE, "running", {"open", "clone", "stop", "fold", *_REQUESTS}),
        (None, "damaged", {"repair", "delete"}),
    ],
)
def test_keys_of_a_stage_and_a_phase(stage: Stage | None, phase: str, keys: set[str]) -> None:
    assert run_keys(stage, phase) == keys


@pytest.mark.parametrize("stage", Stage)
def test_chat_is_offered_where_a_finished_run_can_be_chatted_with(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(isolate(tmp_path, monkeypatch), stage, "made")
    (run.merged if stage is Stage.MERGE else run.adapter).mkdir()
    try:
        possible = bool(find_target(run))
    except StackllamaError:
        possible = False
    assert ("chat" in run_keys(stage, "finished")) == possible


def test_samples_are_offered_where_there_can_be_some() -> None:
    without = {stage for stage in Stage if "samples" not in run_keys(stage, "finished")}
    assert without == samples_browser._REASONS.keys() - {Stage.PIPELINE}  # once it has finished, it has PPO's


@pytest.mark.parametrize(
    ("stage", "phase", "advice"),
    [
        (Stage.PPO, "finished", "enter: open, a: samples, t: chat, e: edit a copy"),
        (Stage.REWARD, "finished", "enter: open, e: edit a copy"),
        (Stage.PIPELINE, "finished", "enter: open its stages, a: samples, z: fold them, e: edit a copy"),
        (Stage.MERGE, "lost", "enter: open, r: restart the merge, e: edit a copy"),
        (Stage.SFT, "stalled", "enter: open, x: save and stop, w: save checkpoint"),
        (Stage.MERGE, "running", "enter: open, x: save and stop"),
        (None, "damaged", "r: repair its records from its other files, D: delete"),
    ],
)
def test_advice_names_keys_that_work(stage: Stage | None, phase: str, advice: str) -> None:
    assert advice_of_run(stage, phase) == advice


def test_a_queued_run_has_nothing_to_save_and_says_what_it_waits_for() -> None:
    row = Row(id="b", path=Path("b"), phase="queued", stage=Stage.SFT, created=1.0, at="waiting for a to end")
    lines = [line.plain for line in about_lines(row, [])]
    assert lines[1:] == ["waiting for a to end", "enter: open, x: stop waiting, e: edit a copy"]
    with pytest.raises(RefusedError, match="b is queued and has not begun: there is nothing to save"):
        check("b", State(stage=Stage.SFT, phase="queued"), "save")
    row = Row(id="b", path=Path("b"), phase="stopped", stage=Stage.SFT, created=1.0)
    assert about_lines(row, [])[-1].plain == "enter: open, r: put it back in its queue, e: edit a copy"
    stopped = State(stage=Stage.SFT, phase="stopped", exit_code=75)
    assert advice(RunDir(Path("b")), stopped) == "r: put it back in its queue"


def test_a_checkpoint_is_named_only_where_there_is_one() -> None:
    assert advice_of_run(Stage.SFT, "failed", exit_code=1) == (
        "enter: open, r: resume from the last checkpoint, e: edit a copy"
    )
    assert "r: start again: no checkpoint was saved" in advice_of_run(Stage.SFT, "failed", exit_code=1, saved=False)
    assert "chat" not in run_keys(Stage.SFT, "running", saved=False)


def test_a_mistake_is_mended_in_a_copy_first() -> None:
    advice = advice_of_run(Stage.SFT, "failed", exit_code=2, saved=False)
    assert advice == "enter: open, e: edit a copy, r: try the same again"


def test_every_phase_has_advice() -> None:
    phases = ("queued", "starting", "running", "stalled", "stopping", *ENDED, "damaged", "unknown")
    assert all(advice_of_run(stage, phase) for stage in Stage for phase in phases)


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("phase", ["queued", "starting", "running", "stopping", "finished"])
def test_a_request_is_offered_where_it_is_served(stage: Stage, phase: str) -> None:
    if stage is Stage.PIPELINE:  # it passes requests on
        return
    state = State(stage=stage, phase=phase)  # type: ignore[arg-type]
    asks: dict[str, Ask] = {"save": "save", "pause": "pause", "sample": "sample", "change": "set"}
    for name, ask in asks.items():
        try:
            check("run", state, ask)
        except RefusedError:
            assert name not in run_keys(stage, phase)
        else:
            assert name in run_keys(stage, phase)


def test_help_and_palette_leave_out_what_could_only_refuse(stocked: Home) -> None:
    whole = make_run(stocked, Stage.PIPELINE, "whole", phase="running")
    merge = make_run(stocked, Stage.MERGE, "whole-ppo-merged", phase="running", parents=["whole"])
    locks = [run.acquire_lock() for run in (whole, merge)]

    async def script(shown: Shown) -> None:
        def refused(*names: str) -> None:
            commands = " ".join(command.help for command in shown.app.get_system_commands(shown.front))
            for offered in (keys_text(shown.front).plain, commands):
                listed = {word for word in offered.split() if word.partition(".")[0] in ("runs", "monitor")}
                left_out = {name for name in _ACTING[shown.name] if f"{shown.name[:-6].lower()}.{name}" not in listed}
                assert left_out == {*names}

        async def to(run: str) -> None:
            await shown.press(*["j"] * [row.id for row in shown.front._shown].index(run))
            await shown.until(lambda: shown.front.row_id == run)

        await shown.shows("tuned", "alive")
        await to("tuned")
        refused("stop", "save", "resume", "samples", "fold", "fork")
        await shown.press("g")
        await to("alive")
        refused("resume", "samples", "chat", "delete", "fold", "fork")
        await shown.press("space", "g")
        await to("tuned")
        refused("resume", "delete", "samples", "fold", "fork")  # the last three by the cursor, not the selection
        await shown.press("escape")
        for run, names in (
            ("tuned", {"stop", "save", "pause", "sample", "change", "fix", "resume", "samples", "fork"}),
            ("alive", {"fix", "resume", "samples", "chat", "delete", "fork"}),
            ("whole", {"save", "pause", "sample", "change", "fix", "resume", "samples", "chat", "delete", "fork"}),
        ):
            shown.app.open_run(run)
            await shown.reaches("MonitorScreen")
            await shown.until(lambda: shown.front._last_update is not None)
            refused(*names, *(() if run == "whole" else ("child", "child_back")))
            await shown.press("escape")
            await shown.reaches("RunsScreen")

    run_app(stocked, script)
    for lock in locks:
        os.close(lock)
