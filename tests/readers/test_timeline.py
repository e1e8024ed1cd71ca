"""Events of a run among the lines of its log: which, in what words, and where."""

from pathlib import Path

import pytest

from stackllama_console.readers.run_columns import COLUMNS
from stackllama_console.readers.run_reader import RunReader
from stackllama_console.readers.run_row import Row
from stackllama_console.readers.timeline import KEPT, RunEvent, Timeline, event_lines
from stackllama_console.tui.widgets.panels import sample_lines
from stackllama_engine.contract.events import EventReader, EventWriter, Record
from stackllama_engine.contract.run_dir import RunDir, State
from stackllama_engine.contract.stages import Stage


def event(kind: str, moment: float = 0.0, **fields: object) -> Record:
    return Record(seq=0, time=moment, kind=kind, **fields)  # type: ignore[arg-type]


def texts(timeline: Timeline) -> list[str]:
    timeline.publish()
    return [each.text for each in timeline.events]


def test_steps_are_one_event_and_the_rest_in_words() -> None:
    timeline = Timeline()
    phases = ["load", "rollout", "score", "update", "rollout", "update", "save", "rollout"]
    timeline.add_phases([event("phase", index, phase=phase) for index, phase in enumerate(phases[:4])], 1)
    timeline.add_phases([event("phase", index, phase=phase) for index, phase in enumerate(phases)][4:], 1)
    timeline.add(event("phase", 10, phase="waiting", data={"reason": "3 GB\x1b[2J missing"}), 1)
    timeline.add(event("checkpoint", 11, step=50, data={"path": "checkpoints/50"}), 1)
    timeline.add_evaluation(12, 50, {"loss": 1.0, "eval_loss": 0.5, "eval_accuracy": None}, 1)
    timeline.add(event("health", 13, data={"message": "3 pairs\ndropped"}), 1)
    timeline.add(event("request", 14, step=51, data={"request": "save"}), 1)
    timeline.add(event("progress", 15, step=52), 1)
    timeline.add(event("end", 16, data={"exit_code": 1, "cause": "no room"}), 1)
    assert texts(timeline) == [
        "phase: load",
        "phase: rollout",
        "phase: save",
        "phase: rollout",
        "phase: waiting (3 GB missing)",
        "checkpoint at step 50",
        "evaluation at step 50: eval_loss 0.5, eval_accuracy nan",
        "notice: 3 pairs dropped",
        "request: save at step 51",
        "ended with exit code 1: no room",
    ]


def test_events_are_bounded_and_in_order_of_time() -> None:
    timeline = Timeline()
    timeline.add(event("health", 5, data={"message": "late"}), 1)
    timeline.add(event("health", 4, data={"message": "early"}), 1)
    assert texts(timeline) == ["notice: early", "notice: late"]
    for index in range(3 * KEPT):
        timeline.add(event("checkpoint", 10 + index, step=index), 1)
    assert KEPT / 2 <= len(texts(timeline)) <= KEPT and texts(timeline)[-1] == f"checkpoint at step {3 * KEPT - 1:,}"


def test_places_among_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [
        RunEvent(1.0, 1, 10, "of an earlier attempt"),
        RunEvent(2.0, 2, 0, "first"),
        RunEvent(3.0, 2, None, "with the one before"),
        RunEvent(4.0, 2, 500, "beyond the end"),
    ]
    placed = [(place, text.split(" ", 1)[1]) for place, text in event_lines(events, 2, 100, 300)]
    assert placed == [
        (99, "of an earlier attempt"),
        (100, "first"),
        (100, "with the one before"),
        (300, "beyond the end"),
    ]
    unplaced = [RunEvent(1.0, 1, None, "a"), RunEvent(2.0, 1, None, "b")]
    assert [place for place, _ in event_lines(unplaced, 1, 0, 70)] == [70, 70]


def test_writer_says_how_long_the_log_was(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.attempt_dir(1).mkdir(parents=True)
    run.write_state(State(stage=Stage.SFT, phase="finished", attempt=1, created=1.0, exit_code=0, ended=2.0))
    writer = EventWriter(run.attempt_dir(1) / "events.jsonl")
    writer.write("phase", phase="load")
    (run.attempt_dir(1) / "log.txt").write_text("loading\n")
    writer.write("metrics", step=1, metrics={"eval_loss": 0.5})
    writer.write("phase", phase="save")
    writer.close()
    logs = [each.log for each in EventReader(run.attempt_dir(1) / "events.jsonl").read()]
    assert logs == [None, None, 8]
    reader = RunReader(run)
    reader.poll()
    assert [(each.log, each.text) for each in reader.events] == [
        (None, "phase: load"),
        (None, "evaluation at step 1: eval_loss 0.5"),
        (8, "phase: save"),
    ]


def test_steps_have_separators() -> None:
    timeline = Timeline()
    timeline.add_evaluation(1.0, 150_000, {"eval_loss": 0.5}, 1)
    timeline.add(Record(seq=1, kind="checkpoint", time=2.0, step=150_000), 1)
    timeline.publish()
    assert [event.text for event in timeline.events] == [
        "evaluation at step 150,000: eval_loss 0.5",
        "checkpoint at step 150,000",
    ]
    row = Row(id="a", path=Path("a"), step=150_000, total_steps=200_000)
    assert COLUMNS["step"].text(row, 0.0) == "150,000/200,000"
    (head, *_) = sample_lines([{"step": 150_000, "question": "q", "response": "r"}], 40, 9)
    assert head.plain == "step 150,000"
