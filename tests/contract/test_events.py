"""events.jsonl as writers, crashes and full disks leave it."""

import errno
import json
import math
import os
import stat
from pathlib import Path

import pytest

from stackllama_engine.contract.events import Event, EventReader, EventWriter
from stackllama_engine.contract.history import fold, read_history

LINE = b'{"seq":%d,"time":1.0,"kind":"progress","step":%d}\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def steps(reader: EventReader) -> list[int | None]:
    return [event.step for event in reader.read()]


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


# writing


def test_written_records_are_read_back(path: Path) -> None:
    writer = EventWriter(path)
    writer.write("phase", phase="train")
    writer.write("metrics", step=1, metrics={"loss": 1.5, "objective/kl": -0.25})
    writer.write("end", data={"exit_code": 0, "cause": None})
    writer.close()
    first, second, last = EventReader(path).read()
    assert [first.seq, second.seq, last.seq] == [0, 1, 2]
    assert (first.kind, first.phase) == ("phase", "train")
    assert (second.step, second.metrics) == (1, {"loss": 1.5, "objective/kl": -0.25})
    assert last.data == {"exit_code": 0, "cause": None}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nan_and_infinity_are_null_and_named(path: Path) -> None:
    writer = EventWriter(path)
    writer.write("metrics", step=1, metrics={"loss": math.nan, "grad_norm": math.inf, "low": -math.inf, "entropy": 2.0})
    (event,) = EventReader(path).read()
    assert event.metrics == {"loss": None, "grad_norm": None, "low": None, "entropy": 2.0}
    assert event.nonfinite == ["loss", "grad_norm", "low"]
    json.loads(path.read_bytes(), parse_constant=pytest.fail)  # NaN is no JSON


def test_second_writer_goes_on_after_a_torn_tail(path: Path) -> None:
    writer = EventWriter(path)
    writer.write("progress", step=1)
    writer.write("progress", step=2)
    writer.close()
    append(path, b'{"seq":2,"time":1.0,"ki')
    writer = EventWriter(path)
    writer.write("progress", step=3)
    writer.write("progress", step=4)
    reader = EventReader(path)
    events = list(reader.read())
    assert [(event.seq, event.step) for event in events] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert reader.bad_lines == 1


def test_full_disk_is_counted_and_never_raised(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = EventWriter(path)
    writer.write("progress", step=1)
    write = os.write

    def no_room(_descriptor: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", no_room)
    writer.write("progress", step=2)
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10]))
    writer.write("progress", step=3)
    monkeypatch.setattr(os, "write", write)
    writer.write("progress", step=4)
    reader = EventReader(path)
    assert steps(reader) == [1, 4], "the stub of a short write must not glue onto the next record"
    assert (writer.lost, reader.bad_lines) == (2, 1)


# reading


def test_missing_file_is_no_events_yet(path: Path) -> None:
    reader = EventReader(path)
    assert steps(reader) == []
    append(path, LINE % (0, 1))
    assert steps(reader) == [1]


def test_unterminated_tail_is_kept_for_later(path: Path) -> None:
    line = LINE % (0, 1)
    reader = EventReader(path)
    for end in range(1, len(line)):
        append(path, line[end - 1 : end])
        assert steps(reader) == []
    append(path, b"\n" + LINE % (1, 2))
    assert steps(reader) == [1, 2]
    assert reader.bad_lines == 0


@pytest.mark.parametrize(
    "bad",
    [
        b"not json", b"{}", b"[]", b"null", b'{"seq":"x","time":1.0,"kind":"end"}', b"\x00" * 64, b'{"seq":1,\x00}',
        b'{"seq":1,"time":1.0,"kind":"\xff\xfe"}', b"\xff\xfe\xfd", b'{"seq":1,"time":NaN,"kind":"end"}',
        b"x" * 5_000_000, b'{"seq":1,"time":1.0,"kind":"progress","phase":"' + b"y" * 5_000_000 + b'"}',
        b"[" * 100_000,
    ],
    ids=lambda bad: repr(bad[:24]),
)  # fmt: skip
def test_bad_line_is_skipped_and_counted(path: Path, bad: bytes) -> None:
    path.write_bytes(LINE % (0, 1) + bad + b"\n" + LINE % (1, 2))
    reader = EventReader(path)
    assert steps(reader) == [1, 2]
    assert (reader.bad_lines, reader.restarts) == (1, 0)
    append(path, LINE % (2, 3))
    assert steps(reader) == [3]


def test_endless_line_is_not_kept_in_memory(path: Path) -> None:
    path.write_bytes(LINE % (0, 1))
    reader = EventReader(path)
    assert steps(reader) == [1]
    for _ in range(5):
        append(path, b"z" * 1_000_000)
        assert steps(reader) == []
    append(path, b"\n" + LINE % (1, 2))
    assert steps(reader) == [2]
    assert reader.bad_lines == 1


def test_empty_lines_are_no_news(path: Path) -> None:
    path.write_bytes(b"\n\n" + LINE % (0, 1) + b"\n")
    reader = EventReader(path)
    assert (steps(reader), reader.bad_lines) == ([1], 0)


def test_unknown_kinds_and_keys_of_a_newer_writer(path: Path) -> None:
    path.write_bytes(b'{"seq":0,"time":1.0,"kind":"aurora","novel":{"a":[1]}}\n')
    (event,) = EventReader(path).read()
    assert event.kind == "aurora"
    assert fold([event]).phase is None


def test_truncated_file_is_read_anew(path: Path) -> None:
    path.write_bytes(LINE % (0, 1) + LINE % (1, 2) + b'{"torn')
    reader = EventReader(path)
    assert steps(reader) == [1, 2]
    path.write_bytes(LINE % (0, 7))
    assert steps(reader) == [7]
    assert (reader.restarts, reader.bad_lines) == (1, 0)


def test_replaced_file_is_read_anew(path: Path, tmp_path: Path) -> None:
    path.write_bytes(LINE % (0, 1))
    reader = EventReader(path)
    assert steps(reader) == [1]
    other = tmp_path / "other"
    other.write_bytes(LINE % (0, 5) + LINE % (1, 6) + LINE % (2, 7))  # longer, so that only the inode tells
    other.replace(path)
    assert steps(reader) == [5, 6, 7]
    assert reader.restarts == 1


def test_many_records_over_many_blocks(path: Path) -> None:
    count = 60_000  # some 3 MB, so that records lie across the reader's blocks
    path.write_bytes(b"".join(LINE % (number, number) for number in range(count)))
    reader = EventReader(path)
    assert steps(reader) == list(range(count))
    assert reader.bad_lines == 0


# folding


def test_history_keeps_first_and_last_and_the_end() -> None:
    events = [
        Event(seq=0, time=1.0, kind="phase", phase="train"),
        Event(seq=1, time=2.0, kind="metrics", step=1, total_steps=9, metrics={"loss": 3.0}),
        Event(seq=2, time=3.0, kind="metrics", step=2, metrics={"loss": 2.0, "eval_loss": 2.5}),
        Event(seq=3, time=4.0, kind="memory", metrics={"rss": 5.0}, phase="load", data={"phase": {"rss": 3.0}}),
        Event(seq=3, time=4.0, kind="memory", metrics={"rss": 5.0}, phase="load", data={"phase": {"rss": 2, "x": 9}}),
        Event(seq=3, time=4.0, kind="memory", metrics={"rss": 5.0}, phase="load", data={"phase": ["rss"]}),
        Event(seq=4, time=5.0, kind="checkpoint", step=2),
        Event(seq=5, time=6.0, kind="health", data={"message": "3 pairs dropped"}),
        Event(seq=6, time=7.0, kind="end", data={"exit_code": 75, "cause": "saved"}),
    ]
    history = fold(events)
    assert (history.phase, history.step, history.total_steps, history.updated) == ("train", 2, 9, 7.0)
    assert history.first == {"loss": 3.0, "eval_loss": 2.5}
    assert history.last == {"loss": 2.0, "eval_loss": 2.5}
    assert history.memory_by_phase == {"load": {"rss": 3.0}}
    assert (history.memory, history.checkpoint, history.health) == ({"rss": 5.0}, 2, ["3 pairs dropped"])
    assert (history.exit_code, history.cause) == (75, "saved")


def test_history_of_several_attempts(tmp_path: Path) -> None:
    for number, step in ((1, 4), (2, 6)):
        writer = EventWriter(tmp_path / f"{number}.jsonl")
        writer.write("metrics", step=step, metrics={"loss": float(step)})
        writer.close()
    history = read_history([tmp_path / "1.jsonl", tmp_path / "2.jsonl", tmp_path / "3.jsonl"])
    assert (history.first, history.last, history.step) == ({"loss": 4.0}, {"loss": 6.0}, 6)
