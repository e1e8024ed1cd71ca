"""Runs that end or stall are told once; what was there at the beginning and the runs of a pipeline are not."""

from pathlib import Path

import msgspec
import pytest
from tests.tui.screens_kit import isolate, make_run

from stackllama_console.readers import endings
from stackllama_console.readers.endings import Endings
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage


class Clock:
    """Every poll is later than the seconds between two reconciles."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 10.0
        return self.now


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return isolate(tmp_path, monkeypatch)


def turn(run: RunDir, phase: str, cause: str | None = None) -> None:
    run.write_state(msgspec.structs.replace(run.read_state(), phase=phase, cause=cause, exit_code=None))  # type: ignore[arg-type]


def said(follower: Endings) -> list[str]:
    return [str(ending) for ending in follower.poll()]


def test_each_end_is_told_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(home, Stage.SFT, "old")
    run = make_run(home, Stage.SFT, "now", phase="running")
    lock = run.acquire_lock()
    follower = Endings(home, Clock())
    assert said(follower) == []
    turn(run, "stalled")
    assert said(follower) == ["now stalled"] and said(follower) == []
    turn(run, "running")
    assert said(follower) == []
    turn(run, "failed", "out of memory\x1b[2J in train")
    assert said(follower) == ["now failed: out of memory in train"] and said(follower) == []
    turn(run, "running")
    assert said(follower) == []
    turn(run, "finished")
    assert said(follower) == ["now finished"]
    run.release_lock(lock)


def test_a_run_that_came_and_ended_between_two_polls_is_told(home: Home) -> None:
    follower = Endings(home, Clock())
    assert said(follower) == []
    make_run(home, Stage.SFT, "short", phase="failed")
    assert said(follower) == ["short failed"]


def test_the_runs_of_a_pipeline_end_silently(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = Endings(home, Clock())
    follower.poll()
    monkeypatch.setattr(endings, "is_child", lambda run: run.id == "whole-sft")
    make_run(home, Stage.SFT, "whole-sft")
    make_run(home, Stage.SFT, "other")
    assert said(follower) == ["other finished"]


def test_a_finding_is_told_once_until_it_clears(home: Home) -> None:
    run = make_run(home, Stage.PPO, "now", phase="running")
    lock = run.acquire_lock()
    follower = Endings(home, Clock())
    assert said(follower) == []
    for findings, told in (
        ({"kl_high": "KL is\x1b[2J 20"}, ["now finding: KL is 20"]),
        ({"kl_high": "KL is 20", "no_end": "none ends"}, ["now finding: none ends"]),
        ({"no_end": "none ends"}, []),
        ({"kl_high": "KL is 30", "no_end": "none ends"}, ["now finding: KL is 30"]),
    ):
        run.write_state(msgspec.structs.replace(run.read_state(), findings=findings))
        assert said(follower) == told
    run.release_lock(lock)
