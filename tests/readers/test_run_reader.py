"""RunReader: history and series, hostile bytes, resumed attempts, deleted runs, the cost of idling."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from tests.old_runs import lay_out

from stackllama_console.cli.tail import Tail
from stackllama_console.readers import run_state
from stackllama_console.readers.metric_columns import NAMES
from stackllama_console.readers.protocol import Reader
from stackllama_console.readers.run_reader import RunReader
from stackllama_console.sanitise import one_line
from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.history import History, fold
from stackllama_engine.contract.run_dir import Home, RunDir, State
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


def test_reader_folds_events_into_history_and_series(make_run: Make, add: Add) -> None:
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
    assert reader.error is None


def test_poll_reports_only_new_events(make_run: Make, add: Add) -> None:
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


def test_published_history_is_not_changed_again(make_run: Make, add: Add) -> None:
    run = make_run()
    add(run, metrics(1, loss=1.0), ("health", {"data": {"message": "one"}}))
    reader = polled(run)
    before, series = reader.history, reader.series
    add(run, metrics(2, loss=2.0, other=3.0), ("health", {"data": {"message": "two"}}))
    reader.poll()
    assert (before.first, before.last, before.health) == ({"loss": 1.0}, {"loss": 1.0}, ["one"])
    assert list(series) == ["loss"]
    assert (reader.history.last, reader.notices) == ({"loss": 2.0, "other": 3.0}, ["one", "two"])


def test_poll_without_changes_opens_no_file(make_run: Make, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(phase="finished", exit_code=0)
    add(run, progress(1))
    for path in (run.attempts, run.path / "state.json"):
        os.utime(path, (T0, T0))  # as after a while; in the same tick a change could not be detected
    reader = polled(run)
    reader.poll()

    def no(*_: object, **__: object) -> None:
        raise AssertionError("looked inside")

    for name in ("open", "read_bytes", "iterdir"):
        monkeypatch.setattr(Path, name, no)
    monkeypatch.setattr(os, "open", no)
    assert not reader.poll()


def test_notices_are_the_newest(make_run: Make, add: Add) -> None:
    run = make_run()
    add(run, *(("health", {"data": {"message": f"notice {number}"}}) for number in range(1000)))
    reader = polled(run)
    assert reader.notices == [f"notice {number}" for number in range(800, 1000)]


def test_supervisors_notice_does_not_count_as_an_event_of_the_worker(
    make_run: Make, add: Add, assert_clean: Callable[[Any], None]
) -> None:
    run = make_run()
    add(run, metrics(1, loss=1.0))
    reader = polled(run)
    updated = reader.history.updated
    journal = run.attempt_dir(1) / "health.jsonl"
    journal.write_bytes(
        b'{"seq":0,"time":9e9,"kind":"health","data":{"message":"Run stalled. \\u001b[2J"}}\n\x00broken\n'
    )
    assert reader.poll() and len(reader.notices) == 1 and "Run stalled." in reader.notices[0]
    assert_clean(reader.notices[0])
    assert (reader.history.updated, reader.bad_lines) == (updated, 1)
    assert not reader.poll()
    add(run, metrics(2, loss=0.5))
    assert reader.poll() and len(reader.notices) == 1, "an event dropped the notice"


def test_metrics_without_a_step_belong_to_the_newest_step(make_run: Make, add: Add) -> None:
    run = make_run()
    add(run, progress(7), metrics(None, loss=1.0))
    assert points(polled(run), "loss") == {7: 1.0}


def test_changing_sets_of_names_keep_their_order(make_run: Make, add: Add) -> None:
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


def test_names_beyond_the_limit_are_dropped_with_a_notice(make_run: Make, add: Add) -> None:
    run = make_run()
    add(run, metrics(1, **{f"name {number}": 1.0 for number in range(NAMES + 5)}))
    reader = polled(run)
    assert len(reader.series) == NAMES
    assert reader.notices == ["5 values are not shown: the run has too many metrics."]


# attempts


def test_resumed_attempt_replaces_its_steps(make_run: Make, add: Add) -> None:
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
    assert reader.attempts == [1, 2]
    eta = reader.eta(T0 + 1012)
    assert eta is not None
    assert (eta.pace, eta.likely) == (2, 8), "4 steps at the 2 s of this attempt, whatever the first one took"


@pytest.mark.parametrize("at_once", [True, False])
def test_eta_leaves_a_pause_out(make_run: Make, add: Add, at_once: bool) -> None:
    run = make_run()
    reader = RunReader(run)
    pause, train = (("phase", {"phase": name, "time": T0 + at}) for name, at in (("paused", 2), ("train", 302)))
    for events in ([progress(1, T0), progress(2, T0 + 2), pause], [train, progress(3, T0 + 304)]):
        add(run, *events)
        if not at_once:
            reader.poll()
    reader.poll()
    eta = reader.eta(T0 + 304)
    assert eta is not None
    assert (eta.pace, eta.likely) == (2.0, 14.0)


@pytest.mark.parametrize("at_once", [True, False])
def test_eta_ignores_the_time_between_attempts(make_run: Make, add: Add, at_once: bool) -> None:
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


def test_eta_is_none_unless_the_run_is_running(make_run: Make, add: Add) -> None:
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
def test_bad_line_costs_only_itself(make_run: Make, add: Add, bad: bytes) -> None:
    run = make_run()
    add(run, progress(1), bad + b"\n", metrics(2, loss=2.0))
    reader = polled(run)
    assert (reader.history.step, reader.bad_lines, points(reader, "loss")) == (2, 1, {2: 2.0})
    assert reader.error is None
    add(run, bad + b"\n")
    assert reader.poll(), "the count of bad lines has changed"
    assert reader.bad_lines == 2


def test_value_over_two_lines_is_two_bad_lines(make_run: Make, add: Add) -> None:
    one = b'{"seq":1,"time":1.0,"kind":"x"}'
    run = make_run()
    add(run, b'{"seq":1,\n"time":1.0,"kind":"x"}\n', one + one + b"\n", progress(3))
    reader = polled(run)
    assert (reader.bad_lines, reader.history.step) == (3, 3)


def test_truncated_file_is_read_from_its_start(make_run: Make, add: Add) -> None:
    run = make_run()
    add(run, metrics(1, loss=1.0), metrics(2, loss=2.0, gone=1.0), b"bad\n")
    reader = polled(run)
    (run.attempt_dir(1) / "events.jsonl").write_bytes(b"")
    assert reader.poll()
    assert (reader.series, reader.history.last, reader.bad_lines) == ({}, {}, 0)
    add(run, metrics(7, loss=7.0))
    assert reader.poll()
    assert points(reader, "loss") == {7: 7.0}


def test_replaced_file_is_read_again_with_the_other_attempts(make_run: Make, add: Add, tmp_path: Path) -> None:
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
    assert reader.attempts == [1, 2]


def test_texts_are_sanitised(make_run: Make, add: Add, assert_clean: Callable[[Any], None]) -> None:
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
        *reader.notices,
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
def test_reading_in_portions_equals_reading_at_once(events: list[Any], sizes: list[int]) -> None:
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


# one reducer


def damaged(data: bytes, kind: str) -> bytes:
    """Damage recorded events as crashes and other writers do."""
    lines = data.splitlines(keepends=True)
    match kind:
        case "truncated":
            return b"".join(line[: len(line) // 2] + b"\n" if n % 7 == 3 else line for n, line in enumerate(lines))[:-9]
        case "hostile":
            notice = b'{"seq":1,"time":1.0,"kind":"health","data":{"message":"a\\u001b[2J\\u202eb"}}\n'
            odd = b'{"seq":1,"time":1.0,"kind":"memory","phase":"\\u009b2J","metrics":{"rss":1},'
            odd += b'"data":{"phase":{"rss":9}}}\n'
            return b"".join(line + (b"\x00\xff\xfe\n", notice, odd)[n % 3] for n, line in enumerate(lines))
        case _:
            return data


def journal(events: bytes) -> bytes:
    """Return a supervisor's notices at times between those of a worker's events."""
    times = sorted(float(time) for time in re.findall(rb'"time":([0-9.]+)', events))
    return b"".join(
        msgspec.json.encode({"seq": n, "time": time + 1e-4, "kind": "health", "data": {"message": f"notice {n}"}})
        + b"\n"
        for n, time in enumerate(times[:: len(times) // 4 or 1])
    )


def assert_agrees(reader: RunReader, run: RunDir) -> History:
    """Assert that a reader holds what ``runs show`` folds from the same files; return that."""
    tail = Tail(run, run.id, Stage.SFT)
    for _ in tail.read():
        pass
    assert reader.history == clean(tail.history), run.id
    assert reader.bad_lines == tail.bad_lines, run.id
    return tail.history


def clean(history: History) -> History:
    """Sanitise the texts of a history."""
    phases = {one_line(phase): peaks for phase, peaks in history.memory_by_phase.items()}
    return structs.replace(
        history,
        phase=history.phase and one_line(history.phase),
        cause=history.cause and one_line(history.cause),
        memory_by_phase=phases,
        notices=[notice._replace(text=one_line(notice.text)) for notice in history.notices],
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(lay_out(tmp_path_factory.mktemp("recorded")))


@pytest.mark.parametrize("kind", ["as recorded", "truncated", "hostile"])
@pytest.mark.parametrize("portion", [1 << 30, 4099], ids=["whole", "in portions"])
def test_reader_agrees_with_history_fold_over_recorded_runs(
    recorded: Home, tmp_path: Path, kind: str, portion: int
) -> None:
    compared = 0
    for old in recorded.runs():
        run = RunDir(tmp_path / "copies" / old.id)
        state = old.read_state()
        files = [damaged(path.read_bytes(), kind) for path in old.events_files()]
        files += files[-1:]  # resumed once more from an earlier step, so that steps are done again
        for number in range(1, len(files) + 1):
            run.attempt_dir(number).mkdir(parents=True)
        run.write_state(structs.replace(state, attempt=len(files)))
        reader = RunReader(run)
        for number, data in enumerate(files, start=1):
            (run.attempt_dir(number) / "health.jsonl").write_bytes(damaged(journal(data), kind))
            with (run.attempt_dir(number) / "events.jsonl").open("wb") as file:
                for start in range(0, len(data), portion):
                    file.write(data[start : start + portion])
                    file.flush()
                    reader.poll()
        expected = assert_agrees(reader, run)
        assert len(reader.attempts) == len(files)
        compared += len(expected.last) > 0
        for name in ("events.jsonl", "health.jsonl"):  # replaced, by fewer lines
            path = run.attempt_dir(1) / name
            lines = path.read_bytes().splitlines(keepends=True)
            path.with_suffix(".new").write_bytes(b"".join(lines[::2]))
            path.with_suffix(".new").replace(path)
            reader.poll()
            assert_agrees(reader, run)
    assert compared >= 3, "the recorded runs have metrics"


# the state


def test_deleted_run_is_reported_and_what_was_read_stays(make_run: Make, add: Add) -> None:
    run = make_run()
    add(run, metrics(1, loss=1.0))
    reader = polled(run)
    shutil.rmtree(run.path)
    assert reader.poll()
    assert reader.error == f"The run was deleted: {run.path} is gone."
    assert points(reader, "loss") == {1: 1.0}
    assert not reader.poll()


def test_missing_run_is_reported(tmp_path: Path) -> None:
    reader = RunReader(RunDir(tmp_path / "none"))
    assert reader.poll()
    assert (reader.phase, reader.stage, reader.error) == (
        "unknown",
        None,
        f"The run was deleted: {tmp_path}/none is gone.",
    )


def test_damaged_state_is_reported_until_it_is_fixed(make_run: Make, clock: Any) -> None:
    run = make_run(phase="finished")
    reader = RunReader(run, clock)
    good = (run.path / "state.json").read_bytes()
    (run.path / "state.json").write_bytes(b'{"stage": "pp\x1b[2J')
    assert reader.poll()
    assert reader.error is not None
    assert "state.json cannot be read" in reader.error
    (run.path / "state.json").write_bytes(good)
    clock.now += 2.0
    assert reader.poll()
    assert (reader.error, reader.phase) == (None, "finished")


def test_unreadable_events_of_one_attempt_hide_no_other(make_run: Make, add: Add) -> None:
    run = make_run(attempt=2)
    os.mkfifo(run.attempt_dir(1) / "events.jsonl")
    (run.attempt_dir(1) / "health.jsonl").mkdir()
    add(run, ("metrics", {"step": 3, "metrics": {"loss": 0.5}}), attempt=2)
    reader = polled(run)
    assert reader.error is not None and "not a regular file" in reader.error
    assert reader.history.last == {"loss": 0.5} and reader.series["loss"].last is not None


def test_unreadable_events_are_reported_without_an_exception(make_run: Make) -> None:
    run = make_run()
    (run.attempt_dir(1) / "events.jsonl").mkdir()
    reader = polled(run)
    assert reader.error == f"{run.attempt_dir(1) / 'events.jsonl'} cannot be read: a directory, not a regular file."
    assert reader.phase == "running"


def test_lock_is_tried_once_per_second(make_run: Make, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_run_without_a_supervisor_is_lost(make_run: Make, add: Add) -> None:
    run = make_run(locked=False)
    add(run, progress(1))
    reader = polled(run)
    assert reader.phase == "lost"
    assert reader.state is not None
    assert "supervisor ended" in (reader.state.cause or "")
