"""Outcome of an attempt, from its end event, its exit status and its log."""

import os
import signal
from pathlib import Path

import pytest

from stackllama_engine.contract.events import Event
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.attempt_outcome import (
    Outcome,
    from_end_event,
    from_status,
    last_log_lines,
    on_resume,
    stopped_by_force,
)


def end(**data: object) -> Event:
    return Event(seq=1, time=1.0, kind="end", data=data)


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        ({"exit_code": 0, "cause": None}, Outcome(phase="finished", exit_code=0)),
        ({"exit_code": 75, "cause": "saved"}, Outcome(phase="stopped", exit_code=75, cause="saved")),
        ({"exit_code": 1, "cause": "NaN"}, Outcome(phase="failed", exit_code=1, cause="NaN")),
        ({"exit_code": 2}, Outcome(phase="failed", exit_code=2, cause="exit code 2")),
        ({}, Outcome(phase="failed", exit_code=1, cause="The `end` event has no exit code.")),
    ],
)
def test_from_end_event_reads_code_and_cause(data: dict[str, object], outcome: Outcome) -> None:
    assert from_end_event(end(**data)) == outcome


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (0, Outcome(phase="finished", exit_code=0)),
        (75 << 8, Outcome(phase="stopped", exit_code=75)),
        (3 << 8, Outcome(phase="failed", exit_code=3, cause="exit code 3: last")),
        (signal.SIGTERM, Outcome(phase="failed", exit_code=143, cause="killed by SIGTERM")),
        (signal.SIGSEGV | 0x80, Outcome(phase="failed", exit_code=139, cause="killed by SIGSEGV")),
    ],
)
def test_from_status_reads_the_exit_code_or_signal(status: int, outcome: Outcome) -> None:
    assert from_status(int(status), ["first", "last"]) == outcome


def test_last_log_lines_cut_lines_and_progress_bars(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert last_log_lines(log) == []
    log.write_bytes(b"old\n" * 50 + b"\xff bad\n\n 10%|#\r 20%|##\r\n" + b"x" * 2000 + b"\nunfinished")
    lines = last_log_lines(log)
    assert len(lines) == 20
    assert lines[-4:] == ["\ufffd bad", " 20%|##", "x" * 500, "unfinished"]


def test_on_resume_is_true_of_the_stage(tmp_path: Path) -> None:
    home = Home(tmp_path)
    said = {stage: on_resume(home.create(stage, "", str(stage)), stage) for stage in Stage}
    assert said[Stage.MERGE] == "A merge saves no checkpoints: resuming starts it again."
    assert said[Stage.PIPELINE] == "Resuming continues with the stage it was in."
    assert {said[stage] for stage in (Stage.SFT, Stage.REWARD, Stage.PPO)} == {
        "There is no checkpoint yet: resuming starts from step 0."
    }
    run = home.run("sft")
    (run.checkpoints / "step-000005").mkdir()
    assert on_resume(run, Stage.SFT) == "Resuming continues from the last checkpoint."
    cause = stopped_by_force(signal.SIGKILL, 5.0, said[Stage.MERGE]).cause or ""
    assert cause.endswith("was killed by SIGKILL. A merge saves no checkpoints: resuming starts it again.")


@pytest.mark.parametrize("code", [-1, 256, 10**30, True, "0", 1.5])
def test_from_end_event_with_an_invalid_exit_code_is_a_failure(code: object) -> None:
    assert from_end_event(end(exit_code=code)).exit_code == 1


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_last_log_lines_of_a_folder_or_a_pipe_are_empty(tmp_path: Path, kind: str) -> None:
    log = tmp_path / "log.txt"
    log.mkdir() if kind == "folder" else os.mkfifo(log)
    assert last_log_lines(log) == []
