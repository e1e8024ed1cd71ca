"""events.jsonl as writers, crashes and full disks leave it."""

import errno
import json
import math
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from stackllama_engine.contract.child_environment import source_path
from stackllama_engine.contract.events import Event, EventReader, EventWriter
from stackllama_engine.contract.history import History, fold, read_history

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


def test_second_writer_continues_after_a_truncated_tail(path: Path) -> None:
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


def test_a_full_disk_delays_records_and_is_never_raised(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    *late, told = reader.read()
    assert [event.step for event in late] == [1, 2, 3, 4], "a stub must not glue onto the next record"
    assert [event.seq for event in (*late, told)] == [0, 1, 2, 3, 4]
    assert (writer.lost, reader.bad_lines) == (0, 0)
    assert told.kind == "health" and "No space left on device" in told.data["message"]
    writer.write("progress", step=5)
    assert steps(reader) == [5], "said once"


@pytest.mark.parametrize("open_tail", [False, True])
def test_record_cut_by_a_full_disk_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_tail: bool
) -> None:
    write = os.write
    for cut in range(100):  # a record has about 70 bytes: all but the end of the line is among them
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(b"{" if open_tail else b"")
        writer = EventWriter(path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda descriptor, data, cut=cut: write(descriptor, data[:cut]))
            writer.write("progress", step=1)
        writer.write("progress", step=2)
        reader = EventReader(path)
        assert [event.step for event in reader.read() if event.kind == "progress"] == [1, 2]
        assert (writer.lost, reader.bad_lines) == (0, int(open_tail))


def test_dropped_partial_record_does_not_join_the_next(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, write = EventWriter(path), os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10]) if len(data) > 10 else 0)
        writer.write("progress", step=0)
        patch.setattr(os, "write", lambda descriptor, data: 0)
        for step in range(1, 20):
            writer.write("samples", step=step, data={"text": "x" * (1 << 19)})
    writer.write("progress", step=20)
    reader = EventReader(path)
    assert [event.step for event in reader.read()] == [*range(writer.lost, 21), None]
    assert writer.lost > 1 and reader.bad_lines == 1


def test_waiting_records_are_bounded_in_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = EventWriter(path)
    write = os.write

    def no_room(_descriptor: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", no_room)
    for step in range(20):
        writer.write("samples", step=step, data={"text": "x" * (1 << 19)})
    monkeypatch.setattr(os, "write", write)
    writer.write("progress", step=20)
    found = list(EventReader(path).read())
    assert writer.lost == 21 - (len(found) - 1) > 0, "the oldest, counted"
    assert [event.step for event in found] == [*range(writer.lost, 21), None]
    assert f"{writer.lost} were lost" in found[-1].data["message"]


@pytest.mark.parametrize("kind", ["tmpfs", "limit"])
def test_a_disk_that_is_really_full_costs_at_most_one_record(kind: str, tmp_path: Path) -> None:
    """In a process of its own: a file system of 64 KiB, and a limit to the size of files, which is there everywhere."""
    script = textwrap.dedent(FULL_DISK)
    command = [sys.executable, "-c", script, str(tmp_path), kind]
    if kind == "tmpfs":
        command = ["unshare", "--user", "--map-root-user", "--mount", *command]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | source_path(""))
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no file system may be mounted here")
    assert done.returncode == 0, done.stderr
    written, lost, bad_lines, failures = map(int, done.stdout.split())
    assert failures > 0, "it was never full"
    assert (written, lost) == (2000, 0) and bad_lines <= 1


FULL_DISK = """
    import errno, os, resource, signal, subprocess, sys
    from pathlib import Path
    from stackllama_engine.contract.events import EventReader, EventWriter

    folder, kind = Path(sys.argv[1]), sys.argv[2]
    if kind == "tmpfs":
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]).returncode:
            sys.exit(77)
    else:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65000, resource.RLIM_INFINITY))
    path = folder / "events.jsonl"
    writer, failures = EventWriter(path), 0
    for step in range(2000):  # training continues
        writer.write("progress", step=step)
        failures += bool(writer._waiting)
    if kind == "tmpfs":
        subprocess.run(["mount", "-o", "remount,size=16m", str(folder)], check=True)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.close()
    reader = EventReader(path)
    steps = [event.step for event in reader.read() if event.kind == "progress"]
    assert steps == sorted(set(steps))
    print(len(steps), writer.lost, reader.bad_lines, failures)
"""


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
        b"not json",
        b"{}",
        b"[]",
        b"null",
        b'{"seq":"x","time":1.0,"kind":"end"}',
        b"\x00" * 64,
        b'{"seq":1,\x00}',
        b'{"seq":1,"time":1.0,"kind":"\xff\xfe"}',
        b"\xff\xfe\xfd",
        b'{"seq":1,"time":NaN,"kind":"end"}',
        b"x" * 5_000_000,
        b'{"seq":1,"time":1.0,"kind":"progress","phase":"' + b"y" * 5_000_000 + b'"}',
        b"[" * 100_000,
    ],
    ids=lambda bad: repr(bad[:24]),
)
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


def test_empty_lines_are_ignored(path: Path) -> None:
    path.write_bytes(b"\n\n" + LINE % (0, 1) + b"\n")
    reader = EventReader(path)
    assert (steps(reader), reader.bad_lines) == ([1], 0)


def test_unknown_kinds_and_keys_of_a_newer_writer_are_ignored(path: Path) -> None:
    path.write_bytes(b'{"seq":0,"time":1.0,"kind":"aurora","novel":{"a":[1]}}\n')
    (event,) = EventReader(path).read()
    assert event.kind == "aurora"
    assert fold([event]).phase is None


def test_truncated_file_is_read_from_the_start(path: Path) -> None:
    path.write_bytes(LINE % (0, 1) + LINE % (1, 2) + b'{"torn')
    reader = EventReader(path)
    assert steps(reader) == [1, 2]
    path.write_bytes(LINE % (0, 7))
    assert steps(reader) == [7]
    assert (reader.restarts, reader.bad_lines) == (1, 0)


def test_replaced_file_is_read_from_the_start(path: Path, tmp_path: Path) -> None:
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
    assert (history.memory, history.health) == ({"rss": 5.0}, ["3 pairs dropped"])
    assert (history.exit_code, history.cause) == (75, "saved")


def test_history_of_several_attempts(tmp_path: Path) -> None:
    for number, step in ((1, 4), (2, 6)):
        writer = EventWriter(tmp_path / f"{number}.jsonl")
        writer.write("metrics", step=step, metrics={"loss": float(step)})
        writer.close()
    history = read_history([tmp_path / "1.jsonl", tmp_path / "2.jsonl", tmp_path / "3.jsonl"])
    assert (history.first, history.last, history.step) == ({"loss": 4.0}, {"loss": 6.0}, 6)


def test_notices_are_in_the_order_of_their_times_whichever_file_is_read_first() -> None:
    worker = [
        Event(seq=n, time=time, kind="health", data={"message": f"worker {time:g}"}) for n, time in enumerate((1, 3))
    ]
    supervisor = [Event(seq=0, time=2, kind="health", data={"message": "supervisor 2"})]
    one, other = fold(worker), History()
    for event in supervisor:
        one.add_notice(event)
        other.add_notice(event)
    fold(worker, other)
    assert one.health == other.health == ["worker 1", "supervisor 2", "worker 3"]
    assert one == other and one.updated == 3


def test_only_the_newest_notices_are_kept() -> None:
    events = [Event(seq=n, time=float(n), kind="health", data={"message": str(n)}) for n in range(300)]
    history = fold(events)
    history.add_notice(Event(seq=0, time=0.5, kind="health", data={"message": "too old"}))
    assert history.health == [str(n) for n in range(100, 300)]
