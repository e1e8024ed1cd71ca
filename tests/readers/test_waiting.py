"""Waiting for the first step: what is done, for how long, how long it usually takes, and requests that are pending."""

import os
from pathlib import Path

import msgspec
import pytest
from tests.tui.screens_kit import isolate, make_run

from stackllama_console.readers.run_columns import last_text
from stackllama_console.readers.runs_index import RunsIndex
from stackllama_console.readers.waiting import WaitWatch, usual_wait, waiting_text
from stackllama_console.request_texts import pending_requests
from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.history import History, read_history
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return isolate(tmp_path, monkeypatch)


def _started(run: RunDir, seconds: float | None) -> RunDir:
    """Write events of a run whose first step came so many seconds after its start; None: it never came."""
    events = run.attempt_dir(1) / "events.jsonl"
    writer = EventWriter(events)
    writer.write("phase", phase="start")
    writer.write("phase", phase="load")
    writer.write("activity", data={"doing": "reading weights", "share": 0.34})
    if seconds is not None:
        writer.write("phase", phase="train")
    writer.close()
    if seconds is not None:
        last = msgspec.json.decode(events.read_bytes().splitlines()[-1])["time"]
        run.write_state(msgspec.structs.replace(run.read_state(), started=last - seconds))
    return run


def test_waiting_names_activity_share_time_and_usual_time(home: Home) -> None:
    for name, seconds in (("first", 30.0), ("second", 50.0), ("third", 40.0)):
        _started(make_run(home, Stage.SFT, name), seconds)
    _started(make_run(home, Stage.REWARD, "another-stage"), 500.0)
    _started(make_run(home, Stage.SFT, "another-model", "model_name_or_path=other/model"), 500.0)
    run = _started(make_run(home, Stage.SFT, "now", phase="running"), None)
    assert usual_wait(home, run) == pytest.approx(40, abs=1)
    state, history = run.read_state(), read_history(run.events_files())
    assert state.started is not None
    said = waiting_text(state, history, state.started + 27, 40.0)
    assert said == "reading weights 34%, 25 s (usually starts in 40 s)"


def test_usual_wait_counts_the_first_attempt_of_resumed_runs_and_the_demo_of_any_installation(home: Home) -> None:
    demo = "stackllama_engine/demo_base"
    other = _started(make_run(home, Stage.SFT, "resumed", f"model_name_or_path=/other/place/{demo}"), 30.0)
    events = other.attempt_dir(1) / "events.jsonl"
    first, *_, last = (msgspec.json.decode(line) for line in events.read_bytes().splitlines())
    first["time"] = last["time"] - 23.0
    events.write_bytes(msgspec.json.encode(first) + b"\n" + msgspec.json.encode(last) + b"\n")
    other.write_state(msgspec.structs.replace(other.read_state(), attempt=2, started=last["time"] + 900.0))
    run = _started(make_run(home, Stage.SFT, "now", f"model_name_or_path=/this/{demo}", phase="running"), None)
    assert usual_wait(home, run) == pytest.approx(23.0)


def test_nothing_is_waited_for_once_it_trains_or_has_ended(home: Home) -> None:
    running = _started(make_run(home, Stage.SFT, "training", phase="running"), 3.0)
    assert WaitWatch(running).text(running.read_state(), read_history(running.events_files())) == ""
    ended = _started(make_run(home, Stage.SFT, "ended", phase="failed"), None)
    assert WaitWatch(ended).text(ended.read_state(), read_history(ended.events_files())) == ""


def test_before_the_first_event_libraries_are_imported(home: Home) -> None:
    run = make_run(home, Stage.PPO, "new", phase="starting")
    state = run.read_state()
    assert state.started is not None
    assert waiting_text(state, History(), state.started + 4) == "importing libraries, 0 s"
    old = History(phase="train", step=12)  # of the attempt before
    assert waiting_text(state, old, state.started + 5) == "importing libraries, 5 s"


def test_the_list_says_what_a_starting_run_does(home: Home) -> None:
    run = _started(make_run(home, Stage.SFT, "now", phase="running"), None)
    lock = run.acquire_lock()
    index = RunsIndex(home)
    assert index.poll()
    assert index.rows[0].loading.startswith("reading weights 34%, ")
    assert last_text(index.rows[0]).startswith("reading weights 34%, ")
    os.close(lock)


def test_requests_are_pending_until_they_are_served(home: Home) -> None:
    run = make_run(home, Stage.PPO, "asked", phase="running")
    assert pending_requests(run) == []
    run.request("save")
    run.request("pause")
    (run.control / "set-kl_coef").write_text("0.1")
    (run.control / "unknown").write_text("")
    assert pending_requests(run) == ["pause", "save a checkpoint", "set kl_coef"]
    run.served("save")
    assert pending_requests(run) == ["pause", "set kl_coef"]
