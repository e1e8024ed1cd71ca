"""Which runs a directory of another trainer holds: itself, or several below it."""

import json
import os
from pathlib import Path

import pytest

from stackllama_console.readers.foreign_runs import runs_in
from stackllama_console.units import span
from stackllama_engine.contract.errors import UsageError

from .event_bytes import event, scalar


def _events(folder: Path, moment: int = 100) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"events.out.tfevents.{moment}.h"
    file.write_bytes(event(1, scalar("train/loss", 1.0)))
    os.utime(file, (moment, moment))


def _names(path: Path) -> list[str]:
    return [run.name for run in runs_in(path)]


def test_three_folders_of_events_are_three_runs_the_newest_first(tmp_path: Path) -> None:
    for moment, name in enumerate(("a", "b", "c"), start=100):
        _events(tmp_path / "tb" / name, moment)
    runs = runs_in(tmp_path / "tb")
    assert [(run.name, run.path, run.changed) for run in runs] == [
        (name, tmp_path / "tb" / name, moment) for name, moment in (("c", 102.0), ("b", 101.0), ("a", 100.0))
    ]
    assert {*_names(tmp_path)} == {"tb/a", "tb/b", "tb/c"}


def test_three_trainers_are_three_runs_whatever_is_below_each(tmp_path: Path) -> None:
    (tmp_path / "hf" / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "hf" / "checkpoint-5" / "trainer_state.json").write_text(json.dumps({"log_history": []}))
    _events(tmp_path / "hf" / "runs" / "Nov24_10-11-12_h")
    (tmp_path / "factory").mkdir()
    (tmp_path / "factory" / "trainer_log.jsonl").write_text("{}\n")
    _events(tmp_path / "keras" / "train")
    _events(tmp_path / "keras" / "validation")
    assert {*_names(tmp_path)} == {"hf", "factory", "keras"}


@pytest.mark.parametrize("below", ["runs/Nov24_h", "train", "checkpoint-5/runs"])
def test_a_directory_with_files_of_its_own_is_one_run(tmp_path: Path, below: str) -> None:
    _events(tmp_path / below)
    (tmp_path / "trainer_log.jsonl").write_text("{}\n")
    assert _names(tmp_path) == [tmp_path.name]


def test_restarts_below_runs_and_writers_side_by_side_are_one_run(tmp_path: Path) -> None:
    starts = ("Nov24_10-11-12_h", "Nov25_10-11-12_h")
    for name in (*(f"out/runs/{start}" for start in starts), "logs/train", "logs/validation"):
        _events(tmp_path / name)
    assert runs_in(tmp_path / "out")[0].path == tmp_path / "out"
    assert runs_in(tmp_path / "logs")[0].path == tmp_path / "logs"
    assert {*_names(tmp_path / "out" / "runs")} == {*starts}  # asked for by itself
    assert {*_names(tmp_path)} == {"out", "logs"}


def test_folders_below_the_runs_of_a_project_are_a_run_each(tmp_path: Path) -> None:
    for name in ("A", "B", "C/train", "C/validation"):
        _events(tmp_path / "proj" / "runs" / name)
    assert {*_names(tmp_path / "proj")} == {"runs/A", "runs/B", "runs/C"}
    _events(tmp_path / "proj" / "runs" / "Nov24_10-11-12_h")  # not all are a trainer's starts
    assert {*_names(tmp_path / "proj")} == {"runs/A", "runs/B", "runs/C", "runs/Nov24_10-11-12_h"}


def test_output_directories_in_a_projects_runs_are_a_run_each(tmp_path: Path) -> None:
    for name in ("a/runs/Nov24_10-11-12_h", "a/runs/Nov25_10-11-12_h", "b/runs/first", "b/runs/second"):
        _events(tmp_path / "runs" / name)
    (tmp_path / "runs" / "b" / "checkpoint-5").mkdir()
    (tmp_path / "runs" / "b" / "checkpoint-5" / "trainer_state.json").write_text("{}")
    assert {*_names(tmp_path)} == {"runs/a", "runs/b"}


def test_a_file_is_the_run_it_is_in(tmp_path: Path) -> None:
    _events(tmp_path)
    _events(tmp_path / "other")
    assert _names(next(tmp_path.glob("events*"))) == [tmp_path.name]


def test_a_directory_of_nothing_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to follow"):
        runs_in(tmp_path)
    with pytest.raises(UsageError, match="no such directory"):
        runs_in(tmp_path / "none")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "1 minute"),
        (119, "1 minute"),
        (600, "10 minutes"),
        (7199, "1 hour"),
        (7200, "2 hours"),
        (3 * 86400, "3 days"),
    ],
)
def test_a_span_is_told_in_its_largest_whole_unit(seconds: float, words: str) -> None:
    assert span(seconds) == words
