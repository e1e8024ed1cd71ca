"""The keys that a run's stage and phase allow, and their words, agree with what the actions do."""

from pathlib import Path

import pytest
from tests.tui.screens_kit import isolate, make_run

from stackllama_console.readers import samples_browser
from stackllama_console.readers.run_row import Row
from stackllama_console.tui.run_keys import advice_of_run, run_keys
from stackllama_console.tui.widgets.outcome import advice
from stackllama_console.tui.widgets.run_lines import about_lines
from stackllama_engine.contract.chat_target import find_target
from stackllama_engine.contract.errors import RefusedError, StackllamaError
from stackllama_engine.contract.requests import check
from stackllama_engine.contract.run_dir import ENDED, RunDir, State
from stackllama_engine.contract.stages import Stage


@pytest.mark.parametrize(
    ("stage", "phase", "keys"),
    [
        (Stage.PPO, "finished", {"open", "clone", "delete", "samples", "chat"}),
        (Stage.PPO, "running", {"open", "clone", "stop", "save", "samples", "chat"}),
        (Stage.PPO, "queued", {"open", "clone", "stop", "samples"}),
        (Stage.SFT, "failed", {"open", "clone", "delete", "resume", "chat"}),
        (Stage.REWARD, "finished", {"open", "clone", "delete"}),
        (Stage.MERGE, "finished", {"open", "clone", "delete", "chat"}),
        (Stage.MERGE, "running", {"open", "clone", "stop", "save"}),
        (Stage.PIPELINE, "stopped", {"open", "clone", "delete", "resume", "fold"}),
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
