"""RunReader: what events add up to, hostile bytes, resumed attempts, runs that vanish, the cost of idling."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackllama_console.readers import run_state
from stackllama_console.readers.metric_columns import NAMES
from stackllama_console.readers.protocol import Reader
from stackllama_console.readers.run_reader import RunReader
from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.history import fold
from stackllama_engine.contract.run_dir import RunDir, State
from stackllama_engine.contract.stages import Stage

T0 = 1_700_000_000.0
Make = Callable[..., RunDir]
Add = Callable[..., None]


def progress(step: int, time: float = T0, total: int = 10) -> tuple[str, dict[str, Any]]:
    return "progress", {"step": step, "time": time, "total_steps": total}


def metrics(step: int | None, **values: float | None) -> tuple[str, dict[str, Any]]:
    return "metrics", ({} if step is None else {"step": step}) | {"metrics": values}


def polled(run: RunDir) -> RunReader:
    reader = RunReader(run)
    assert reader.poll()
    return reader


def points(reader: RunReader, name: str) -> dict[float, float]:
    series = reader.series[name]
    return dict(zip(series.steps, series.values, strict=True))


# what it says


def test_events_become_history_and_series(make_run: Make, add: Add) -> None:
    run = make_run()
    add(
        run,
        ("phase", {"phase": "load"}),
        progress(1, T0 + 5),
        metrics(1, loss=4.0, kl=0.5),
        ("memory", {"metrics": {"rss": 100.0}}),
        progress(2, T0 + 6),
        metrics(2, loss=None, kl=0.75),
        ("memory", {"metrics": {"rss": 200.0}, "phase": "load\x1b", "data": {"phase": {"rss": 50.0}}}),
        ("phase", {"phase": "update"}),
        metrics(2, **{"time/rollout": 1.5, "time/score": None}),
    )
    reader: Reader = polled(run)
    history = reader.history
    assert (reader.title, reader.stage, reader.phase, reader.bad_lines) == ("run", Stage.PPO, "running", 0)
    assert (history.phase, history.step, history.total_steps) == ("update", 2, 10)
    assert history.first == {"loss": 4.0, "kl": 0.5, "time/rollout": 1.5, "time/score": None}
    assert history.last == {"loss": None, "kl": 0.75, "time/rollout": 1.5, "time/score": None}
    assert history.memory == {"rss": 200.0}
    assert list(history.memory_by_phase.values()) == [{"rss": 50.0}] and "\x1b" not in "".join(history.memory_by_phase)
    assert isinstance(reader, RunReader)
    assert points(reader, "loss") == {1: 4.0}
    assert list(reader.series["loss"].gaps) == [2], "NaN was measured there"
    assert points(reader, "kl") == {1: 0.5, 2: 0.75}
    assert list(reader.memory["rss"].values) == [100, 200]
    assert list(reader.memory["rss"].steps) == [1, 2], "memory has no step of its own"
    assert reader.timings == {"rollout": 1.5}
    assert reader.trouble is None


def test_only_what_is_new_is_news(make_run: Make, add: Add) -> None:
    run = make_run()
    add(run, progress(1))
    reader = polled(run)
    assert not reader.poll()
    add(run, metrics(2, loss=1.0))
    assert reader.poll()
    assert points(reader, "loss") == {2: 1.0}
    add(run, b'{"seq":0,"time":1.0,"kind":"progress","step":3')
    assert not reader.poll(), "half a record is none"
    add(run, b"}\n")
    assert reader.poll()
    assert reader.history.step == 3


def test_a_published_history_is_not_touched_again(make_run: Make, add: Add) -> None:
    run = make_run()
    add(run, metrics(1, loss=1.0), ("health", {"data": {"message": "one"}}))
    reader = polled(run)
    before, series = reader.history, reader.series
    add(run, metrics(2, loss=2.0, other=3.0), ("health", {"data": {"message": "two"}}))
    reader.poll()
    assert (before.first, before.last, before.health) == ({"loss": 1.0}, {"loss": 1.0}, ["one"])
    assert list(series) == ["loss"]
    assert (reader.history.last, reader.remarks) == ({"loss": 2.0, "other": 3.0}, ["one", "two"])


def test_idling_opens_no_file(make_run: Make, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(phase="finished", exit_code=0)
    add(run, progress(1))
    (run.checkpoints / "step-000001").mkdir()
    for path in (run.attempts, run.checkpoints, run.path / "state.json"):
        os.utime(path, (T0, T0))  # as after a while; in the same tick a change could not be told
    reader = polled(run)
    reader.poll()

    def no(*_: object, **__: object) -> None:
        raise AssertionError("looked inside")

    for name in ("open", "read_bytes", "iterdir"):
        monkeypatch.setattr(Path, name, no)
    monkeypatch.setattr(os, "open", no)
    assert not reader.poll()


def test_checkpoints_come_and_go(make_run: Make) -> None:
    run = make_run()
    reader = polled(run)
    for name in ("step-000020", "step-000005", "step-000030.partial", "junk"):
        (run.checkpoints / name).mkdir()
    assert reader.poll()
    assert reader.checkpoints == [5, 20]
    (run.checkpoints / "step-000005").rmdir()
    reader.poll()
    assert reader.checkpoints == [20]


def test_remarks_are_the_newest(make_run: Make, add: Add) -> None:
    run = make_run()
    add(run, *(("health", {"data": {"message": f"remark {number}"}}) for number in range(1000)))
    reader = polled(run)
    assert reader.remarks == [f"remark {number}" for number in range(800, 1000)]
    assert reader.history.health_count == 1000


def test_what_the_supervisor_noticed_is_a_remark_and_no_news_of_the_worker(
    make_run: Make, add: Add, assert_clean: Callable[[Any], None]
) -> None:
    run = make_run()
    add(run, metrics(1, loss=1.0))
    reader = polled(run)
    updated = reader.history.updated
    journal = run.attempt_dir(1) / "health.jsonl"
    journal.write_bytes(
        b'{"seq":0,"time":9e9,"kind":"health","data":{"message":"It stands still. \\u001b[2J"}}\n\x00broken\n'
    )
    assert reader.poll() and len(reader.remarks) == 1 and "It stands still." in reader.remarks[0]
    assert_clean(reader.remarks[0])
    assert (reader.history.updated, reader.bad_lines) == (updated, 1)
    assert not reader.poll()
    add(run, metrics(2, loss=0.5))
    assert reader.poll() and len(reader.remarks) == 1, "an event forgot the remark"


def test_metrics_without_a_step_stand_at_the_step_that_was_done(make_run: Make, add: Add) -> None:
    run = make_run()
    add(run, progress(7), metrics(None, loss=1.0))
    assert points(polled(run), "loss") == {7: 1.0}


def test_names_in_changing_company_keep_their_order(make_run: Make, add: Add) -> None:
    run = make_run()
    add(
        run,
        metrics(1, loss=1.0, a=1.0),
        metrics(2, loss=2.0),
        metrics(3, loss=3.0, a=3.0),
        metrics(2, loss=-2.0),
        metrics(4, a=4.0, loss=4.0),
        metrics(4, b=4.0),
    )
    reader = polled(run)
    assert points(reader, "loss") == {1: 1.0, 2: -2.0, 4: 4.0}, "step 2 was done again, so 3 is gone"
    assert points(reader, "a") == {1: 1.0, 3: 3.0, 4: 4.0}
    assert reader.history.first == {"loss": 1.0, "a": 1.0, "b": 4.0}
    assert reader.history.last == {"loss": 4.0, "a": 4.0, "b": 4.0}


def test_endless_names_are_left_out_and_said(make_run: Make, add: Add) -> None:
    run = make_run()
    add(run, metrics(1, **{f"name {number}": 1.0 for number in range(NAMES + 5)}))
    reader = polled(run)
    assert len(reader.series) == NAMES
    assert reader.remarks == ["5 values are not shown: the run has too many metrics."]


# attempts


def test_a_resumed_attempt_does_its_steps_again(make_run: Make, add: Add) -> None:
    run = make_run(attempt=2, started=T0 + 900)
    for step in range(1, 6):
        add(run, progress(step, T0 + step), metrics(step, loss=float(step)))
    reader = polled(run)
    assert points(reader, "loss") == {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: 5.0}
    assert reader.eta(T0 + 10) is None, "the attempt that runs has not done a step yet"
    add(run, ("phase", {"phase": "load", "time": T0 + 900}), attempt=2)
    assert reader.poll()
    assert points(reader, "loss")[5] == 5.0
    for step in (4, 5, 6):
        add(run, progress(step, T0 + 1000 + 2 * step), metrics(step, loss=-float(step)), attempt=2)
    assert reader.poll()
    assert points(reader, "loss") == {1: 1.0, 2: 2.0, 3: 3.0, 4: -4.0, 5: -5.0, 6: -6.0}
    first, second = reader.attempts
    assert (first.number, first.first_step, first.last_step) == (1, 1, 5)
    assert (second.number, second.started, second.first_step, second.last_step) == (2, T0 + 900, 4, 6)
    assert (reader.first_step, reader.started) == (4, T0 + 900)
    eta = reader.eta(T0 + 1012)
    assert eta is not None
    assert (eta.pace, eta.likely) == (2, 8), "4 steps at the 2 s of this attempt, whatever the first one took"


@pytest.mark.parametrize("at_once", [True, False])
def test_the_time_between_two_attempts_is_no_step(make_run: Make, add: Add, at_once: bool) -> None:
    run = make_run(attempt=2)
    add(run, progress(4, T0 + 4), progress(5, T0 + 5))
    reader = RunReader(run)
    if not at_once:
        reader.poll()
    add(run, progress(6, T0 + 1000), progress(7, T0 + 1003), attempt=2)  # stopped at a checkpoint: nothing twice
    reader.poll()
    eta = reader.eta(T0 + 1003)
    assert eta is not None
    assert (eta.pace, eta.low, eta.likely, eta.high) == (3.0, 4.5, 9.0, 18.0), "one interval, not three"


def test_no_time_left_is_told_of_a_run_that_is_not_at_work(make_run: Make, add: Add) -> None:
    for phase in ("finished", "stopped", "stopping"):
        run = make_run(name=phase, phase=phase)
        add(run, progress(1, T0), progress(2, T0 + 1))
        assert polled(run).eta(T0 + 1) is None
    pipeline = make_run(Stage.PIPELINE, name="pipeline")
    add(pipeline, progress(1, T0), progress(2, T0 + 1))
    assert polled(pipeline).eta(T0 + 1) is None, "its steps are children"


# hostile bytes


@pytest.mark.parametrize(
    "bad",
    [
        b"not json",
        b"{}",
        b"\x00" * 64,
        b'{"seq":1,"time":1.0,"kind":"\xff\xfe"}',
        b"x" * 5_000_000,
        b'{"seq":1,"time":1.0,"kind":"health","data":{"message":"' + b"y" * 5_000_000 + b'"}}',
        b'{"seq":1,"time":1.0,"kind":"x","novel":' + b"[" * 200_000 + b"}",
        b'{"seq":1,"time":1.0,"kind":"x","data":{"a":' + b"[" * 200_000 + b"}}",
        b'{"seq":1,"time":1.0,"kind":"progress","step":' + b"9" * 400 + b"}",
        b'{"seq":1,"time":1e999,"kind":"end"}',
        b'{"seq":1,"time":1.0,"kind":"x"}{"seq":1,"time":1.0,"kind":"x"}',
    ],
    ids=lambda bad: repr(bad[-24:]),
)
def test_a_bad_line_costs_only_itself(make_run: Make, add: Add, bad: bytes) -> None:
    run = make_run()
    add(run, progress(1), bad + b"\n", metrics(2, loss=2.0))
    reader = polled(run)
    assert (reader.history.step, reader.bad_lines, points(reader, "loss")) == (2, 1, {2: 2.0})
    assert reader.trouble is None
    add(run, bad + b"\n")
    assert reader.poll(), "the count of bad lines is news"
    assert reader.bad_lines == 2


def test_a_value_over_two_lines_is_two_bad_lines_whatever_stands_beside_it(make_run: Make, add: Add) -> None:
    one = b'{"seq":1,"time":1.0,"kind":"x"}'
    run = make_run()
    add(run, b'{"seq":1,\n"time":1.0,"kind":"x"}\n', one + one + b"\n", progress(3))
    reader = polled(run)
    assert (reader.bad_lines, reader.history.step) == (3, 3)


def test_a_truncated_file_is_read_anew(make_run: Make, add: Add) -> None:
    run = make_run()
    add(run, metrics(1, loss=1.0), metrics(2, loss=2.0, gone=1.0), b"bad\n")
    reader = polled(run)
    (run.attempt_dir(1) / "events.jsonl").write_bytes(b"")
    assert reader.poll()
    assert (reader.series, reader.history.last, reader.bad_lines) == ({}, {}, 0)
    add(run, metrics(7, loss=7.0))
    assert reader.poll()
    assert points(reader, "loss") == {7: 7.0}


def test_a_replaced_file_is_read_anew_with_the_other_attempts(make_run: Make, add: Add, tmp_path: Path) -> None:
    run = make_run(attempt=2)
    add(run, metrics(1, loss=1.0))
    add(run, metrics(2, loss=2.0), attempt=2)
    reader = polled(run)
    other = tmp_path / "other"
    record = {"seq": 0, "time": T0, "kind": "metrics", "metrics": {"loss": 9.0}}
    other.write_bytes(b"".join(msgspec.json.encode(record | {"step": step}) + b"\n" for step in (1, 2, 3)))
    other.replace(run.attempt_dir(1) / "events.jsonl")
    assert reader.poll()
    assert points(reader, "loss") == {1: 9.0, 2: 2.0}, "attempt 2 did step 2 again"
    assert [attempt.number for attempt in reader.attempts] == [1, 2]


def test_what_a_terminal_would_obey_is_gone(make_run: Make, add: Add, assert_clean: Callable[[Any], None]) -> None:
    hostile = "\x1b]52;c;aGVsbG8=\x07a\x9b2J\u202eb\x00"
    run = make_run(phase="failed", cause=hostile, last_lines=[hostile], exit_code=1)
    add(
        run,
        ("phase", {"phase": hostile}),
        metrics(1, **{hostile: 1.0, "ab": 2.0}),
        ("health", {"data": {"message": hostile}}),
        ("memory", {"metrics": {hostile: 1.0}}),
        ("end", {"data": {"exit_code": hostile, "cause": hostile}}),
    )
    reader = polled(run)
    assert list(reader.series) == ["ab"], "names that look alike are one"
    history, state = reader.history, reader.state
    assert history.exit_code is None
    assert state is not None
    for text in (
        history.phase,
        history.cause,
        *history.last,
        *history.first,
        *history.memory,
        *reader.remarks,
        *reader.series,
        *reader.memory,
        state.cause,
        *state.last_lines,
    ):
        assert text
        assert_clean(text)


_EVENTS = st.one_of(
    st.builds(
        lambda step, values: metrics(step, **values),
        st.none() | st.integers(0, 9),
        st.dictionaries(st.sampled_from("abc"), st.none() | st.integers(-3, 3).map(float), max_size=3),
    ),
    st.builds(progress, st.integers(0, 9), st.integers(0, 50).map(lambda seconds: T0 + seconds)),
    st.sampled_from(
        [
            ("phase", {"phase": "update"}),
            ("memory", {"metrics": {"rss": 1.0}}),
            ("aurora", {"step": 3}),
            ("health", {"data": {"message": "m"}}),
            ("checkpoint", {"step": 4, "data": {"path": "p"}}),
            ("end", {"data": {"exit_code": 1, "cause": "c"}}),
            ("end", {}),
            ("health", {"data": {}}),
            ("metrics", {}),
        ]
    ),
    st.sampled_from([b"\n", b"bad\n", b"\x00\xff\n", b'{"seq":1,\n', b"}\n", b"z" * 40_000 + b"\n", b"  \n"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_EVENTS, max_size=40), st.lists(st.integers(1, 400), max_size=30))
def test_in_portions_it_is_the_same_as_in_one_piece(events: list[Any], sizes: list[int]) -> None:
    data = b"".join(
        event
        if isinstance(event, bytes)
        else msgspec.json.encode({"seq": 0, "time": T0, "kind": event[0]} | event[1]) + b"\n"
        for event in events
    )
    with tempfile.TemporaryDirectory() as folder:
        readers: list[RunReader] = []
        for name, portions in (("whole", [len(data)]), ("parts", [*sizes, len(data)])):
            run = RunDir(Path(folder) / name)
            run.attempt_dir(1).mkdir(parents=True)
            run.write_state(State(stage=Stage.PPO, phase="finished", attempt=1))
            path, rest = run.attempt_dir(1) / "events.jsonl", data
            readers.append(RunReader(run))
            for size in portions:
                with path.open("ab") as file:
                    file.write(rest[:size])
                rest = rest[size:]
                readers[-1].poll()
        whole, parts = readers
        reader = EventReader(path)
        folded = fold(reader.read())
    assert whole.history == parts.history
    assert whole.history == folded, "the same as the fold over single events"
    assert (whole.bad_lines, whole.attempts) == (parts.bad_lines, parts.attempts)
    assert whole.bad_lines == reader.bad_lines
    for series, others in ((whole.series, parts.series), (whole.memory, parts.memory)):
        assert series.keys() == others.keys()
        for name, one in series.items():
            other = others[name]
            assert (one.steps, one.values, one.gaps) == (other.steps, other.values, other.gaps)


# the state


def test_a_deleted_run_is_said_and_what_was_read_stays(make_run: Make, add: Add) -> None:
    run = make_run()
    add(run, metrics(1, loss=1.0))
    reader = polled(run)
    shutil.rmtree(run.path)
    assert reader.poll()
    assert reader.trouble == f"The run was deleted: {run.path} is gone."
    assert points(reader, "loss") == {1: 1.0}
    assert not reader.poll()


def test_a_run_that_never_was(tmp_path: Path) -> None:
    reader = RunReader(RunDir(tmp_path / "none"))
    assert reader.poll()
    assert (reader.phase, reader.stage, reader.trouble) == (
        "unknown",
        None,
        f"The run was deleted: {tmp_path}/none is gone.",
    )


def test_a_damaged_state_is_said_until_it_is_mended(make_run: Make, clock: Any) -> None:
    run = make_run(phase="finished")
    reader = RunReader(run, clock)
    good = (run.path / "state.json").read_bytes()
    (run.path / "state.json").write_bytes(b'{"stage": "pp\x1b[2J')
    assert reader.poll()
    assert reader.trouble is not None
    assert "state.json cannot be read" in reader.trouble
    (run.path / "state.json").write_bytes(good)
    clock.now += 2.0
    assert reader.poll()
    assert (reader.trouble, reader.phase) == (None, "finished")


def test_events_of_one_attempt_that_cannot_be_read_hide_no_other(make_run: Make, add: Add) -> None:
    run = make_run(attempt=2)
    os.mkfifo(run.attempt_dir(1) / "events.jsonl")
    (run.attempt_dir(1) / "health.jsonl").mkdir()
    add(run, ("metrics", {"step": 3, "metrics": {"loss": 0.5}}), attempt=2)
    reader = polled(run)
    assert reader.trouble is not None and "not a regular file" in reader.trouble
    assert reader.history.last == {"loss": 0.5} and reader.series["loss"].last is not None


def test_events_that_may_not_be_read_are_trouble_and_no_exception(make_run: Make) -> None:
    run = make_run()
    (run.attempt_dir(1) / "events.jsonl").mkdir()
    reader = polled(run)
    assert reader.trouble == f"{run.attempt_dir(1) / 'events.jsonl'} cannot be read: a directory, not a regular file."
    assert reader.phase == "running"


def test_the_lock_is_asked_for_once_a_second(make_run: Make, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    reconcile = run_state.reconcile

    def counted(run: RunDir) -> State:
        asked.append(clock.now)
        return reconcile(run)

    monkeypatch.setattr(run_state, "reconcile", counted)
    run = make_run()
    reader, begun = RunReader(run, clock), clock.now
    for tenths in range(25):
        clock.now = begun + tenths / 10
        reader.poll()
    assert asked == [begun, begun + 1.0, begun + 2.0]
    run.write_state(State(stage=Stage.PPO, phase="stopping", attempt=1))
    assert reader.poll(), "a new state is seen at once"
    assert (reader.phase, len(asked)) == ("stopping", 3)


def test_a_run_without_a_supervisor_is_lost(make_run: Make, add: Add) -> None:
    run = make_run(locked=False)
    add(run, progress(1))
    reader = polled(run)
    assert reader.phase == "lost"
    assert reader.state is not None
    assert "supervisor ended" in (reader.state.cause or "")
