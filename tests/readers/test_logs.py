"""Logs as they grow: whole and truncated, replaced, endless, hostile, faster than can be kept; levels; attempts."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from stackllama_console.readers import logs
from stackllama_console.readers.line_follower import CUT, LineFollower
from stackllama_console.readers.log_levels import Levels
from stackllama_console.readers.logs import LogReader, newest_log
from stackllama_engine.contract.run_dir import RunDir

PAYLOADS = [
    "\x1b]52;c;aGVsbG8=\x07stolen clipboard",
    "\x1b[2J\x1b[Hcleared",
    "\x9b2Jcleared in one character",
    "\x1b]8;;http://evil\x07link\x1b]8;;\x07",
    "\x1b]52;c;never ended",
    "over\rwritten",
    "\u202egnp.exe\u202c bidi",
    "x [/] [/INST] [@click=app.quit]markup[/]",
    "bell\x07 and nul\x00",
]


def texts(reader: LogReader) -> list[str]:
    return [line.text for line in reader.lines]


def append(path: Path, data: bytes | str) -> None:
    with path.open("ab") as file:
        file.write(data.encode() if isinstance(data, str) else data)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "runs" / "one")
    made.attempts.mkdir(parents=True)
    return made


def attempt(run: RunDir, number: int, text: str) -> Path:
    run.attempt_dir(number).mkdir()
    path = run.attempt_dir(number) / "log.txt"
    path.write_text(text)
    return path


def test_poll_returns_new_lines(log: Path) -> None:
    reader = LogReader(log)
    assert reader.poll() == 0 and reader.lines == [] and reader.error is None
    log.write_text("one\ntwo\nthr")
    assert reader.poll() == 2
    assert texts(reader) == ["one", "two"] and reader.open_line is not None and reader.open_line.text == "thr"
    version = reader.version
    assert reader.poll() == 0 and reader.version == version
    append(log, "ee\n\nfive\r\n")
    assert reader.poll() == 3
    assert [(line.place, line.text) for line in reader.lines] == [
        (0, "one"),
        (4, "two"),
        (8, "three"),
        (14, ""),
        (15, "five"),
    ]
    assert reader.open_line is None and reader.version > version and reader.end == 21
    assert [line.place for line in reader.since(8)] == [14, 15] and reader.since(15) == []


def test_any_delivery_gives_the_same_lines(log: Path) -> None:
    generator = random.Random(5)
    parts = [
        "plain",
        "日本語のログ",
        "👩‍🚀 up",
        "",
        "10%\r20%\r30%",
        "40%\r",
        "x" * 9000,
        "a\tb",
        "\r",
        "tail\r\n",
        *PAYLOADS,
    ]
    lines = [generator.choice(parts) for _ in range(400)]
    whole = "\n".join(lines).encode() + b"\n"
    log.write_bytes(whole)
    at_once = LogReader(log)
    at_once.poll()
    for seed in range(5):
        chunks, path = random.Random(seed), log.with_name(f"{seed}.txt")
        path.touch()
        reader, offset = LogReader(path), 0
        while offset < len(whole):
            size = chunks.choice([1, 2, 7, 100, 5000, 20_000])
            append(path, whole[offset : offset + size])
            offset += size
            reader.poll()
        assert reader.lines == at_once.lines
    assert len(at_once.lines) == whole.count(b"\n")


def test_progress_bars_are_left_as_a_terminal_leaves_them(log: Path) -> None:
    reader = LogReader(log)
    for percent in range(0, 100, 10):
        append(log, f"\r{percent}%|###")
        reader.poll()
        assert reader.open_line is not None and reader.open_line.text == f"{percent}%|###"
    assert reader.lines == []
    append(log, "\rdone\n")
    reader.poll()
    assert texts(reader) == ["done"]


def test_a_progress_bar_without_end_takes_no_memory(log: Path) -> None:
    reader = LogReader(log)
    log.write_bytes(b"\r50% of a bar" * 200_000)
    reader.poll()
    assert reader.open_line is not None and reader.open_line.text == "50% of a bar"
    follower = LineFollower(log)
    assert list(follower.read()) == [] and len(follower.rest) < 100


def test_an_endless_line_is_cut_with_a_mark(log: Path) -> None:
    reader = LogReader(log)
    for _ in range(40):
        append(log, "é" * 5000)
        reader.poll()
    assert reader.open_line is not None and len(reader.open_line.text) < logs.LONGEST
    append(log, "\nnext\n" + "z" * 10_000 + "\nlast\n")
    reader.poll()
    first, following, third, last = texts(reader)
    assert first == "é" * (logs.LONGEST // 2) + CUT and (following, last) == ("next", "last")
    assert third == "z" * logs.LONGEST + CUT
    append(log, "y" * 20_000)
    reader.poll()
    append(log, "\r100%")  # begun again: what was too long is gone
    reader.poll()
    append(log, "\n")
    reader.poll()
    assert texts(reader)[-1] == "100%"


def test_many_long_lines_are_bounded_together(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_CHARACTERS", 10_000)
    log.write_text(("x" * 999 + "\n") * 50)
    reader = LogReader(log)
    reader.poll()
    assert len(reader.lines) == 10 and reader.first_place == 40 * 1000


def test_a_large_log_is_read_from_its_end(log: Path) -> None:
    log.write_bytes(b"".join(b"line %04d\n" % index for index in range(1000)))
    follower = LineFollower(log, first=995)
    lines = [line for block in follower.read() for line in block]
    assert lines[0] == b"line 0901" and lines[-1] == b"line 0999" and follower.skipped == 9005
    exact = LineFollower(log, first=1000)
    assert next(exact.read())[0] == b"line 0900"


def test_lines_kept_are_the_newest_without_a_gap(log: Path) -> None:
    reader = LogReader(log, capacity=100)
    log.write_bytes(b"".join(b"%03d\n" % index for index in range(1000)))
    assert reader.poll() == 1000
    assert texts(reader) == [f"{index:03d}" for index in range(900, 1000)] and reader.first_place == 3600
    append(log, "one\ntwo\n")
    assert reader.poll() == 2
    assert (len(reader.lines), reader.first_place) == (100, 3608)
    assert [line.text for line in reader.since(3996)] == ["one", "two"]
    append(log, "".join(f"{index:03d}\n" for index in range(500)))
    assert reader.poll() == 500
    assert texts(reader) == [f"{index:03d}" for index in range(400, 500)]


def test_after_a_backlog_the_newest_part_is_kept(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_BYTES", 2000)
    log.write_text("begin\n")
    reader = LogReader(log)
    reader.poll()
    append(log, "".join(f"line {index:04d}\n" for index in range(1000)))
    reader.poll()
    assert texts(reader) == [f"line {index:04d}" for index in range(800, 1000)]
    assert reader.first_place == 6 + 8000 and reader.lines[0].place == reader.first_place


def test_truncated_or_replaced_log_is_restarted(log: Path) -> None:
    log.write_text("one\ntwo\nopen")
    reader = LogReader(log)
    reader.poll()
    log.write_text("new\n")
    reader.poll()
    assert texts(reader) == ["one", "two", "--- the log was restarted ---", "new"] and reader.open_line is None
    other = log.with_name("other")
    other.write_text("and another file, longer than the one before\n")
    other.replace(log)
    reader.poll()
    assert texts(reader)[-2:] == ["--- the log was restarted ---", "and another file, longer than the one before"]
    log.unlink()
    assert reader.poll() == 0 and reader.error is None
    log.write_text("")
    reader.poll()
    append(log, "back\n")
    reader.poll()
    assert texts(reader)[-1] == "back"


def test_unreadable_log_is_reported(tmp_path: Path) -> None:
    reader = LogReader(tmp_path)
    reader.poll()
    assert reader.error is not None and "not a regular file" in reader.error
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    hanging = LogReader(pipe)  # nobody writes to it: opening it as a file would wait for ever
    hanging.poll()
    assert hanging.error is not None and hanging.lines == []


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_lines_are_sanitised(payload: str, log: Path) -> None:
    log.write_bytes(payload.encode() + b"\n" + payload.encode())
    reader = LogReader(log)
    reader.poll()
    assert reader.open_line is not None
    for text in (*texts(reader), reader.open_line.text):
        assert text.isprintable() and text
    log.write_bytes(b"\xff\xfe broken \x80\n\x00\x00\x00\n")
    reader.poll()
    assert texts(reader)[-2:] == ["\ufffd\ufffd broken \ufffd", ""]


def test_next_attempt_is_followed(run: RunDir) -> None:
    reader = LogReader(run)
    assert reader.poll() == 0 and reader.attempt is None
    first = attempt(run, 1, "a\nb")
    reader.poll()
    assert (texts(reader), reader.attempt) == (["a"], 1)
    append(first, "c\nthe end")
    attempt(run, 2, "again\n")
    reader.poll()
    assert (texts(reader), reader.attempt) == (["a", "bc", "the end", "--- attempt 2 ---", "again"], 2)
    assert reader.lines[3].level == "mark"
    late = LogReader(run)
    late.poll()
    assert texts(late) == ["--- attempt 2 ---", "again"]
    only = LogReader(run, 1)
    only.poll()
    assert texts(only) == ["a", "bc"] and only.attempt == 1


def test_log_of_an_attempt_may_come_later(run: RunDir) -> None:
    run.attempt_dir(1).mkdir()
    reader = LogReader(run)
    reader.poll()
    (run.attempt_dir(1) / "log.txt").write_text("here\n")
    reader.poll()
    assert texts(reader) == ["here"]


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("ERROR:root:no", "error"),
        ("2026-01-01 12:00:00 - ERROR - engine - no", "error"),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory.", "error"),
        ("RuntimeError: boom", "error"),
        ("error: unrecognised arguments", "error"),
        ("E0102 12:00:00.000 1 a.cc:1] no", "error"),
        ("Killed", "error"),
        ("[WARNING|trainer.py:812] 2026-01-01 >> slow", "warning"),
        ("/x.py:3: FutureWarning: will go", "warning"),
        ("W0102 12:00:00.000 1 a.cc:1] hm", "warning"),
        ("INFO:root:it caught ValueError: x and continued", "info"),
        ("[INFO|a.py:1] loading", "info"),
        ("DEBUG:urllib3:GET", "debug"),
        ("{'loss': '0.375', 'eval_error': 1.0, 'warnings': 2}", "other"),
        ("the information debugger killed nobody", "other"),
        ("", "other"),
        ("x" * 100_000 + " ERROR", "other"),
    ],
)
def test_levels_are_read_from_the_text(text: str, level: str) -> None:
    assert Levels().of(text) == level


def test_a_traceback_is_one_error() -> None:
    levels = Levels()
    lines = [
        ("[rank0]: Traceback (most recent call last):", "error"),
        ('[rank0]:   File "x.py", line 3, in f', "error"),
        ("[rank0]:     f()", "error"),
        ("[rank0]: ValueError", "error"),
        ("{'loss': 1.0}", "other"),
        ("Traceback (most recent call last):", "error"),
        ("  File x", "error"),
        ("KeyError: 'a'", "error"),
        ("INFO:root:on", "info"),
    ]
    assert [levels.of(text) for text, _ in lines] == [level for _, level in lines]


def names(folder: Path) -> Iterator[str]:
    yield from (path.name for path in folder.iterdir())


def test_newest_log_of_another_trainer_is_found(tmp_path: Path) -> None:
    assert newest_log(tmp_path) is None and newest_log(tmp_path / "nowhere") is None
    (tmp_path / "old.log").write_text("x")
    (tmp_path / "new.log").write_text("x")
    os.utime(tmp_path / "old.log", (1, 1))
    (tmp_path / "a.log").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "z.log")
    assert newest_log(tmp_path) == tmp_path / "new.log"
    (tmp_path / "trainer.log").write_text("x")
    os.utime(tmp_path / "trainer.log", (1, 1))
    assert newest_log(tmp_path) == tmp_path / "trainer.log"
    assert sorted(names(tmp_path)) == ["a.log", "new.log", "old.log", "trainer.log", "z.log"]
