"""Other trainers' directories: each kind of file, together, growing, half written, hostile, and never touched."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.launch.conftest import Clock

from stackllama_console.readers import foreign, foreign_files, foreign_sources
from stackllama_console.readers.foreign import ForeignReader, open_foreign
from stackllama_console.readers.foreign_sources import plain_name
from stackllama_engine.contract.errors import UsageError

from .event_bytes import event, scalar

PAYLOADS = [
    "\x1b]52;c;aGVsbG8=\x07stolen",
    "\x1b[2J\x1b[Hcleared",
    "\x9b2Jcleared",
    "\u202egnp.exe\u202c",
    "x [/] [@click=app.quit]markup[/]",
    "two\nlines\rand\ttabs\x00",
]


@pytest.fixture
def attach(tmp_path: Path, clock: Clock) -> Callable[[], ForeignReader]:
    """Attach and read; what is in the directory was written a second ago."""

    def make() -> ForeignReader:
        touch(tmp_path, clock.now - 1)
        reader = ForeignReader(tmp_path, clock)
        reader.poll()
        return reader

    return make


def touch(folder: Path, moment: float) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.utime(path, (moment, moment))


def state(steps: int, total: int = 100, **last: Any) -> dict[str, Any]:
    history: list[dict[str, Any]] = [
        {"step": step, "epoch": step / 10, "loss": 5.0 / step, "learning_rate": 1e-5} for step in range(1, steps + 1)
    ]
    return {"global_step": steps, "max_steps": total, "log_history": [*history, *([last] if last else [])]}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def log_line(step: int, **more: Any) -> str:
    values = {
        "current_steps": step,
        "total_steps": 50,
        "loss": 1.0 / step,
        "lr": 1e-4,
        "epoch": 0.1,
        "percentage": step * 2,
        "elapsed_time": f"0:00:{step:02d}",
        "remaining_time": "0:01:00",
    }
    return json.dumps(values | more) + "\n"


def values(reader: ForeignReader, name: str) -> list[tuple[float, float]]:
    series = reader.series[name]
    return list(zip(series.steps, series.values, strict=True))


Attach = Callable[[], ForeignReader]


def test_directory_without_known_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError) as error:
        open_foreign(tmp_path)
    for name in (str(tmp_path), "trainer_state.json", "trainer_log.jsonl", "events.out.tfevents"):
        assert name in str(error.value)
    (tmp_path / "attempts").mkdir()
    with pytest.raises(UsageError, match="a run of this console"):
        open_foreign(tmp_path)
    with pytest.raises(UsageError, match="no such directory"):
        open_foreign(tmp_path / "nowhere")


def test_trainer_state_becomes_history_and_series(tmp_path: Path, attach: Attach) -> None:
    write_json(tmp_path / "trainer_state.json", state(10, step=10, eval_loss=0.75, eval_runtime=1.0))
    reader = attach()
    assert reader.sources == ["trainer_state.json"] and reader.stage is None and reader.title == tmp_path.name
    assert values(reader, "loss")[:2] == [(1, 5.0), (2, 2.5)] and values(reader, "eval_loss") == [(10, 0.75)]
    assert set(reader.series) == {"epoch", "loss", "learning_rate", "eval_loss", "eval_runtime"}
    history = reader.history
    assert (history.step, history.total_steps) == (10, 100)
    assert (history.first["loss"], history.last["loss"]) == (5.0, 0.5)
    assert reader.phase == "running" and reader.eta(0.0) is None and not reader.poll()


def test_newest_checkpoints_state_is_read_without_one_in_the_directory(
    tmp_path: Path, attach: Attach, clock: Clock
) -> None:
    write_json(tmp_path / "checkpoint-9" / "trainer_state.json", state(9))
    write_json(tmp_path / "checkpoint-10" / "trainer_state.json", state(10))
    reader = attach()
    assert reader.sources == ["checkpoint-10/trainer_state.json"] and reader.history.step == 10
    loss = reader.series["loss"]
    write_json(tmp_path / "checkpoint-20" / "trainer_state.json", state(20))
    assert not reader.poll()
    clock.now += foreign.SEARCH_SECONDS
    assert reader.poll() and reader.history.step == 20
    assert reader.series["loss"] is loss and len(loss) == 20  # continued, not started over
    write_json(tmp_path / "trainer_state.json", state(25, 25, step=25, train_runtime=3.0))
    clock.now += foreign.SEARCH_SECONDS
    assert reader.poll() and reader.sources == ["trainer_state.json"] and len(loss) == 25
    assert reader.phase == "finished"


def test_state_of_another_run_replaces_the_series(tmp_path: Path, attach: Attach) -> None:
    write_json(tmp_path / "trainer_state.json", state(10, step=10, train_runtime=1.0))
    reader = attach()
    assert reader.phase == "finished"
    other = {"global_step": 2, "max_steps": 100, "log_history": [{"step": 2, "loss": 9.0}]}
    write_json(tmp_path / "trainer_state.json", other)
    assert reader.poll()
    assert values(reader, "loss") == [(2, 9.0)] and "learning_rate" not in reader.series
    assert reader.history.step == 2 and reader.phase == "running"


def test_half_written_state_is_tried_again(tmp_path: Path, attach: Attach) -> None:
    path = tmp_path / "trainer_state.json"
    whole = json.dumps(state(10))
    path.write_text(whole[:50])
    reader = attach()
    assert reader.series == {} and reader.error is None
    path.write_text(whole)
    assert reader.poll() and len(reader.series["loss"]) == 10
    path.write_text(json.dumps(state(20))[:300])
    reader.poll()
    assert reader.error is None and len(reader.series["loss"]) == 10
    path.write_text(json.dumps(state(20)))
    reader.poll()
    assert reader.error is None and len(reader.series["loss"]) == 20


def test_state_that_stays_damaged_is_reported_once(tmp_path: Path, attach: Attach) -> None:
    path = tmp_path / "trainer_state.json"
    path.write_text('{"log_history": [')
    reader = attach()
    assert reader.error is None
    touch(tmp_path, 1.0)
    reader.poll()
    assert reader.poll()
    assert reader.error == "trainer_state.json is not JSON, or was truncated." and not reader.poll()
    for text in ("[" * 100_000, "[]", '"x"', '{"log_history": 7, "global_step": "x"}', "1" * 10_000, "\xff"):
        path.write_text(text, encoding="latin-1")
        for _ in range(3):
            reader.poll()
    assert reader.series == {}


def test_oversized_state_is_not_read(tmp_path: Path, attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_sources, "MOST_JSON", 1 << 20)
    (tmp_path / "trainer_state.json").write_text(" " * (2 << 20) + "{}")
    assert attach().error == "trainer_state.json is larger than 1 MiB."


def test_values_that_are_not_finite_are_gaps(tmp_path: Path, attach: Attach) -> None:
    entries = [
        {"step": 1, "loss": 1.0, "grad_norm": math.nan, "note": "x", "flag": True, "none": None},
        {"step": 2, "loss": math.nan, "grad_norm": math.inf},
        {"step": 3, "loss": 10**400},
        {"step": "x", "loss": 1.0},
        {"loss": 1.0},
        7,
        {"step": 10**30, "loss": 1.0},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 3, "log_history": entries}))
    reader = attach()
    assert "NaN" in (tmp_path / "trainer_state.json").read_text()
    assert values(reader, "loss") == [(1, 1.0)] and list(reader.series["loss"].gaps) == [2, 3]
    assert list(reader.series["grad_norm"].gaps) == [1, 2] and set(reader.series) == {"loss", "grad_norm"}
    assert reader.history.last["loss"] is None and reader.history.first["loss"] == 1.0
    write_json(tmp_path / "trainer_state.json", {"log_history": [*entries, {"step": 4, "loss": 2.0}]})
    reader.poll()
    assert values(reader, "loss") == [(1, 1.0), (4, 2.0)]


def test_trainer_log_becomes_history_and_series(tmp_path: Path, attach: Attach, clock: Clock) -> None:
    path = tmp_path / "trainer_log.jsonl"
    path.write_text(log_line(1) + log_line(2, vram_allocated=1.5, vram_reserved=2.0) + log_line(3)[:20])
    reader = attach()
    assert values(reader, "loss") == [(1, 1.0), (2, 0.5)] and values(reader, "learning_rate")[0] == (1, 1e-4)
    assert set(reader.series) == {"loss", "learning_rate", "epoch"}
    assert list(reader.memory["allocated"].values) == [1.5 * 2**30] and reader.history.memory["reserved"] == 2 * 2**30
    assert (reader.history.step, reader.history.total_steps, reader.phase) == (2, 50, "running")
    eta = reader.eta(clock.now)
    assert eta is not None and eta.pace == pytest.approx(1.0) and eta.likely == pytest.approx(47.0)
    path.write_text(
        path.read_text()[:-20] + log_line(3) + "no JSON\n\n[]\n" + log_line(50, elapsed_time="1 day, 0:00:50")
    )
    assert reader.poll()
    assert (
        reader.bad_lines == 2
        and reader.history.step == 50
        and reader.phase == "finished"
        and reader.eta(clock.now) is None
    )


def test_truncated_trainer_log_is_read_again(tmp_path: Path, attach: Attach) -> None:
    path = tmp_path / "trainer_log.jsonl"
    path.write_text("".join(log_line(step) for step in range(1, 30)))
    reader = attach()
    path.write_text(log_line(1, loss=7.0))
    reader.poll()
    assert values(reader, "loss") == [(1, 7.0)] and reader.history.step == 1


def test_quiet_directory_is_not_running(tmp_path: Path, attach: Attach, clock: Clock) -> None:
    (tmp_path / "trainer_log.jsonl").write_text(log_line(1) + log_line(2))
    reader = attach()
    assert reader.phase == "running"
    clock.now += foreign.QUIET_SECONDS
    assert reader.poll() and reader.phase == "silent" and reader.history.phase is None and not reader.poll()


def test_event_files_become_history_and_series(tmp_path: Path, attach: Attach, clock: Clock) -> None:
    folder = tmp_path / "runs" / "Nov24_10-11-12_host"
    folder.mkdir(parents=True)
    first = folder / "events.out.tfevents.1000.host.1.0"
    first.write_bytes(b"".join(event(step, scalar("train/loss", step), scalar("eval/loss", 2)) for step in range(1, 6)))
    reader = attach()
    assert values(reader, "loss") == [(step, step) for step in range(1, 6)] and len(reader.series["eval_loss"]) == 5
    assert reader.history.step == 5 and reader.history.total_steps is None and reader.phase == "running"
    with first.open("ab") as file:
        file.write(event(6, scalar("train/loss", 6.0))[:-3])
    assert not reader.poll()
    with first.open("ab") as file:
        file.write(event(6, scalar("train/loss", 6.0))[-3:])
    assert reader.poll() and reader.history.last["loss"] == 6.0
    again = tmp_path / "runs" / "Nov25_10-11-12_host"
    again.mkdir()
    (again / "events.out.tfevents.2000.host.2.0").write_bytes(event(4, scalar("train/loss", 40.0)))
    (again / "1").mkdir()  # transformers' hyper-parameters: newer, and of other tags
    (again / "1" / "events.out.tfevents.2001.host.2.1").write_bytes(event(0, scalar("hparam/x", 1.0)))
    clock.now += foreign.SEARCH_SECONDS
    reader.poll()
    assert values(reader, "loss") == [(1, 1), (2, 2), (3, 3), (4, 40)]  # resumed from step 3
    with first.open("ab") as file:
        file.write(event(7, scalar("train/loss", 7.0)))
    with (again / "events.out.tfevents.2000.host.2.0").open("ab") as file:
        file.write(event(5, scalar("train/loss", 50.0)))
    reader.poll()
    assert values(reader, "loss")[-2:] == [(4, 40), (5, 50)]
    with first.open("ab") as file:
        file.write(event(8, scalar("train/loss", 8.0)))
    reader.poll()
    assert values(reader, "loss")[-2:] == [(4, 40), (5, 50)]  # the older file no longer counts


def test_folders_of_event_files_have_prefixes(tmp_path: Path, attach: Attach, clock: Clock) -> None:
    for name in ("train", "validation"):
        (tmp_path / "logs" / name).mkdir(parents=True)
    (tmp_path / "logs" / "train" / "events.out.tfevents.1.h").write_bytes(event(1, scalar("epoch_loss", 1.0)))
    reader = attach()
    assert set(reader.series) == {"epoch_loss"}
    (tmp_path / "logs" / "validation" / "events.out.tfevents.1.h").write_bytes(event(1, scalar("epoch_loss", 2.0)))
    clock.now += foreign.SEARCH_SECONDS
    reader.poll()
    assert {name: series.last for name, series in reader.series.items()} == {
        "logs/train/epoch_loss": 1.0,
        "logs/validation/epoch_loss": 2.0,
    }


def test_replaced_event_file_is_read_again(tmp_path: Path, attach: Attach) -> None:
    path = tmp_path / "events.out.tfevents.1.h"
    path.write_bytes(event(1, scalar("loss", 1.0)) + event(2, scalar("loss", 2.0)))
    reader = attach()
    path.write_bytes(event(1, scalar("loss", 9.0)))
    for _ in range(3):
        reader.poll()
    assert values(reader, "loss") == [(1, 9.0)]


def test_metric_at_the_highest_step_is_shown(tmp_path: Path, attach: Attach, clock: Clock) -> None:
    write_json(tmp_path / "checkpoint-10" / "trainer_state.json", state(10))
    (tmp_path / "trainer_log.jsonl").write_text("".join(log_line(step) for step in range(1, 13)))
    (tmp_path / "events.out.tfevents.1.h").write_bytes(
        b"".join(
            event(step, scalar("train/grad_norm", step), scalar("train/loss", 3), time=step) for step in (1, 2, 14)
        )
    )
    (tmp_path / "train.log").write_text("hello\n")
    reader = attach()
    assert reader.sources == ["checkpoint-10/trainer_state.json", "trainer_log.jsonl", "events.out.tfevents.1.h"]
    assert reader.log_file == tmp_path / "train.log"
    assert reader.series["loss"].span == (1, 14) and reader.series["learning_rate"].span == (1, 12)
    assert set(reader.series) == {"loss", "learning_rate", "epoch", "grad_norm"}
    assert (reader.history.step, reader.history.total_steps) == (14, 50)
    (tmp_path / "trainer_log.jsonl").write_text("".join(log_line(step) for step in range(1, 20)))
    reader.poll()
    assert reader.series["loss"].span == (1, 19)


def test_links_are_followed_and_each_file_counts_once(tmp_path: Path, attach: Attach) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "events.out.tfevents.1.h").write_bytes(event(1, scalar("lr", 1.0)))
    write_json(outside / "checkpoint-1" / "trainer_state.json", state(3))
    (outside / "trainer_log.jsonl").write_text(log_line(1))
    (outside / "again").symlink_to(outside)  # a circle
    (outside / "self").symlink_to("self")
    (inside / "runs").symlink_to(outside)
    (inside / "more").symlink_to(outside)
    (inside / "checkpoint-1").symlink_to(outside / "checkpoint-1")
    (inside / "trainer_log.jsonl").symlink_to(outside / "trainer_log.jsonl")
    (inside / "scratch").symlink_to(tmp_path / "purged")
    (inside / "train.log").symlink_to("/etc/passwd")
    os.mkfifo(inside / "events.out.tfevents.3.h")  # opening it to read would wait for ever
    reader = open_foreign(inside)
    reader.poll()
    assert len(reader.sources) == 3 and set(reader.series) == {"lr", "loss", "learning_rate", "epoch"}
    (links,) = [note for note in reader.notes if note.startswith("links")]
    assert f"scratch → {tmp_path / 'purged'}" in links and "self" in links
    assert reader.log_file is None and "logs that are links are not read: train.log" in reader.notes
    linked = tmp_path / "linked"
    linked.symlink_to(outside)
    assert len(open_foreign(linked).sources) == 3
    (empty := tmp_path / "empty").mkdir()
    (empty / "runs").symlink_to(tmp_path / "purged")
    with pytest.raises(UsageError, match=f"links that lead to nothing: runs → {tmp_path / 'purged'}"):
        open_foreign(empty)


def test_open_foreign_accepts_a_file_in_the_directory(tmp_path: Path) -> None:
    (tmp_path / "trainer_log.jsonl").write_text(log_line(1))
    reader = open_foreign(tmp_path / "trainer_log.jsonl")
    assert reader.path == tmp_path and reader.poll()


def test_reader_writes_nothing(tmp_path: Path, attach: Attach) -> None:
    write_json(tmp_path / "trainer_state.json", state(3))
    (tmp_path / "trainer_log.jsonl").write_text(log_line(1))
    (tmp_path / "events.out.tfevents.1.h").write_bytes(event(1, scalar("a", 1.0)))
    (tmp_path / "optimizer.pt").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")

    def contents() -> dict[Path, tuple[bytes, int]]:
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()}

    reader = attach()
    before = contents()
    for _ in range(3):
        reader.poll()
    assert contents() == before


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_names_are_sanitised(payload: str, tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / ("run " + payload.replace("/", "_").replace("\x00", ""))
    write_json(folder / "trainer_state.json", {"global_step": 1, "log_history": [{"step": 1, payload: 1.0}]})
    (folder / "trainer_log.jsonl").write_text(log_line(1, **{payload + "b": 2.0}))
    below = folder / payload.replace("/", "_").replace("\x00", "")
    below.mkdir()
    (below / "events.out.tfevents.1.h").write_bytes(event(1, scalar("train/" + payload + "c", 3.0)))
    (folder / "events.out.tfevents.1.h").write_bytes(event(1, scalar(payload + "d", 4.0)))
    reader = ForeignReader(folder, clock)
    reader.poll()
    assert len(reader.series) == 7
    for text in (reader.title, *reader.series, *reader.history.first, *reader.history.last, *reader.sources):
        assert text.isprintable()


def test_number_of_names_is_bounded(tmp_path: Path, attach: Attach) -> None:
    entry = {f"metric {index}": 1.0 for index in range(3000)}
    write_json(tmp_path / "trainer_state.json", {"log_history": [{"step": 1} | entry]})
    assert len(attach().series) == foreign_sources.NAMES


def test_deleted_directory_is_reported(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "run"
    write_json(folder / "trainer_state.json", state(3))
    reader = ForeignReader(folder, clock)
    reader.poll()
    (folder / "trainer_state.json").unlink()
    folder.rmdir()
    clock.now += foreign.SEARCH_SECONDS
    assert reader.poll() and reader.error is not None and "cannot be read" in reader.error
    assert len(reader.series["loss"]) == 3


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("train/loss", "loss"),
        ("eval/loss", "eval_loss"),
        ("test/x/y", "test_x/y"),
        ("objective/kl", "objective/kl"),
        ("train/", "train/"),
        ("loss", "loss"),
        ("/x", "/x"),
    ],
)
def test_plain_name_restores_transformers_names(tag: str, name: str) -> None:
    assert plain_name(tag) == name


# what is left out is said


def events_file(folder: Path, begun: int, *points: tuple[int, float, float], tag: str = "train/loss") -> Path:
    """Write an event file of (step, value, seconds)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events.out.tfevents.{begun}.host.1.0"
    path.write_bytes(b"".join(event(step, scalar(tag, value), time=time) for step, value, time in points))
    return path


def test_newest_event_files_are_read_and_the_rest_is_counted(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_files, "MOST_EVENT_FILES", 3)
    for number in range(1, 6):  # restarts; the newest one's name comes first
        path = events_file(tmp_path / f"run{9 - number}", number, (number, float(number), float(number)))
        os.utime(path, (number, number))
    reader = ForeignReader(tmp_path, clock)
    reader.poll()
    assert [source.partition("/")[0] for source in reader.sources] == ["run4", "run5", "run6"]
    assert reader.notes == ["of 5 event files the 3 newest are read"]
    events_file(tmp_path / "run1", 9, (9, 9.0, 9.0))
    clock.now += foreign.SEARCH_SECONDS
    reader.poll()
    assert "run1/events.out.tfevents.9.host.1.0" in reader.sources and reader.history.step == 9
    assert reader.notes == ["of 6 event files the 3 newest are read"]


def test_limits_of_depth_and_entries_are_reported(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_files, "DEPTH", 2)
    events_file(tmp_path / "a" / "b", 1, (1, 1.0, 1.0))
    events_file(tmp_path / "a" / "b" / "c", 2, (2, 1.0, 2.0))
    reader = ForeignReader(tmp_path, clock)
    reader.poll()
    assert reader.history.step == 1 and reader.notes == ["folders more than 2 deep are not searched"]
    monkeypatch.setattr(foreign_files, "MOST_ENTRIES", 2)
    reader = ForeignReader(tmp_path, clock)
    reader.find()
    assert "the search ended after 2 files and folders" in reader.notes


def test_names_beyond_the_limit_are_reported(tmp_path: Path, attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_sources, "NAMES", 2)
    (tmp_path / "events.out.tfevents.1.h").write_bytes(event(1, *(scalar(f"m{number}", 1.0) for number in range(4))))
    reader = attach()
    assert set(reader.series) == {"m0", "m1"}
    assert [note for note in reader.notes if note.endswith("names are not shown")]


def test_rows_without_a_step_are_counted(tmp_path: Path, attach: Attach) -> None:
    rows = [
        {"step": 1, "loss": 1.0},
        {"predict_loss": 0.5, "predict_runtime": 1.0},
        {"note": "x"},
        {"predict_loss": 0.6},
    ]
    write_json(tmp_path / "trainer_state.json", {"global_step": 1, "log_history": rows})
    assert attach().notes == ["2 rows of trainer_state.json without a step are not drawn (`predict_loss` …)"]


def test_git_lfs_pointers_are_recognised(tmp_path: Path, attach: Attach, clock: Clock) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    names = ("trainer_state.json", "trainer_log.jsonl", "runs/events.out.tfevents.1.h", "train.log")
    (tmp_path / "runs").mkdir()
    for name in names:
        (tmp_path / name).write_text(pointer)
    with pytest.raises(UsageError, match=r"nothing to follow\. Git LFS pointers .*`git lfs pull`.*and 1 more"):
        open_foreign(tmp_path)
    write_json(tmp_path / "checkpoint-3" / "trainer_state.json", state(3))
    reader = attach()
    assert reader.sources == ["checkpoint-3/trainer_state.json"] and reader.history.step == 3
    assert reader.bad_lines == 0 and reader.error is None and reader.log_file is None
    (note,) = reader.notes
    assert note.startswith("Git LFS pointers") and "train.log" in note
    for name in names:  # they were fetched
        (tmp_path / name).unlink()
    events_file(tmp_path / "runs", 1, (7, 1.0, 7.0))
    clock.now += foreign.SEARCH_SECONDS
    reader.poll()
    assert reader.notes == [] and reader.history.step == 7


# several writers


def test_workers_that_take_turns_make_one_curve(tmp_path: Path, attach: Attach) -> None:
    even = [(step, float(step), 100.0 + step) for step in range(0, 20, 2)]
    odd = [(step, float(step), 100.0 + step) for step in range(1, 20, 2)]
    events_file(tmp_path, 100, *even)
    second = events_file(tmp_path, 101, *odd)
    reader = attach()
    assert values(reader, "loss") == [(step, step) for step in range(20)] and set(reader.series) == {"loss"}
    with second.open("ab") as file:
        file.write(event(21, scalar("train/loss", 21.0), time=121.0))
    reader.poll()
    assert values(reader, "loss")[-1] == (21, 21.0) and len(reader.series["loss"]) == 21 and reader.history.step == 21


def test_writers_of_the_same_steps_have_curves_of_their_own(tmp_path: Path, attach: Attach) -> None:
    first = events_file(tmp_path, 100, *((step, 1.0, 100.0 + step) for step in range(1, 6)))
    events_file(tmp_path, 101, *((step, 2.0, 101.0 + step) for step in range(1, 6)))
    reader = attach()
    assert values(reader, "loss") == [(step, 1) for step in range(1, 6)]
    assert values(reader, "loss (2)") == [(step, 2) for step in range(1, 6)]
    assert reader.notes == ["2 programs wrote the same steps: `loss (2)` is the second one's `loss`"]
    with first.open("ab") as file:
        file.write(event(6, scalar("train/loss", 6.0), time=106.0))
    reader.poll()
    assert values(reader, "loss")[-1] == (6, 6)


def test_writer_taken_for_ended_is_noticed_when_it_continues(tmp_path: Path, attach: Attach) -> None:
    first = events_file(tmp_path, 100, (1, 1.0, 101.0), (2, 1.0, 102.0), (3, 1.0, 103.0))
    events_file(tmp_path, 200, (2, 2.0, 202.0))
    reader = attach()
    assert values(reader, "loss") == [(1, 1), (2, 2)]  # begun again at step 2
    with first.open("ab") as file:
        file.write(event(4, scalar("train/loss", 1.0), time=204.0))
    reader.poll()
    reader.poll()
    assert values(reader, "loss") == [(1, 1), (2, 1), (3, 1), (4, 1)] and values(reader, "loss (2)") == [(2, 2)]


def test_older_file_that_is_found_later_comes_first(tmp_path: Path, attach: Attach, clock: Clock) -> None:
    events_file(tmp_path, 200, (3, 3.0, 203.0))
    reader = attach()
    events_file(tmp_path, 100, (1, 1.0, 101.0), (5, 1.0, 105.0))
    clock.now += foreign.SEARCH_SECONDS
    reader.poll()
    assert values(reader, "loss") == [(1, 1), (3, 3)]


# other trainers' logs


def test_ms_swift_log_is_read(tmp_path: Path, attach: Attach, clock: Clock) -> None:
    rows = [
        {
            "loss": 2.0,
            "grad_norm": 0.5,
            "learning_rate": 1e-4,
            "memory(GiB)": 2,
            "train_speed(iter/s)": 0.5,
            "global_step/max_steps": f"{step}/100",
            "percentage": f"{step}.00%",
            "elapsed_time": f"1m {step}s",
            "remaining_time": "1h 2m 3s",
        }
        for step in (1, 2)
    ]
    rows += [{"loss": "1.5", "iteration": "3/100", "elapsed_time": "63s"}, {"last_model_checkpoint": "x/checkpoint-3"}]
    (tmp_path / "logging.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = attach()
    assert values(reader, "loss") == [(1, 2.0), (2, 2.0), (3, 1.5)] and (
        reader.history.step,
        reader.history.total_steps,
    ) == (
        3,
        100,
    )
    assert set(reader.series) == {"loss", "grad_norm", "learning_rate", "train_speed(iter/s)"}
    assert reader.history.memory == {"reserved": 2 * 2**30} and reader.bad_lines == 0 and reader.notes == []
    eta = reader.eta(clock.now)
    assert eta is not None and eta.pace == pytest.approx(1.0)


def test_wandb_history_is_read(tmp_path: Path, attach: Attach) -> None:
    rows = [
        {"_step": 0, "_runtime": 2.5, "_timestamp": 1.7e9, "train/loss": 2.0, "train/global_step": 10},
        {"_step": 1, "_runtime": 4.5, "eval/loss": "NaN", "train/global_step": 20, "h": {"_type": "histogram"}},
        {"_step": 30, "other": 1},
    ]
    (tmp_path / "wandb-history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = attach()
    assert values(reader, "loss") == [(10, 2.0)] and values(reader, "other") == [(30, 1)]
    assert set(reader.series) == {"loss", "eval_loss", "other"} and reader.history.step == 30
    assert list(reader.series["eval_loss"].gaps) == [20]


def test_state_in_last_checkpoint_is_read(tmp_path: Path, attach: Attach) -> None:
    write_json(tmp_path / "last-checkpoint" / "trainer_state.json", state(4))
    assert attach().sources == ["last-checkpoint/trainer_state.json"]
