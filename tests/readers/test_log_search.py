"""The whole file of a log: pages from anywhere, searches whatever the blocks, endless lines, growth, levels."""

import random
from pathlib import Path

import pytest

from stackllama_console.readers import log_file, log_search
from stackllama_console.readers.log_file import LogFile
from stackllama_console.readers.log_levels import Level
from stackllama_console.readers.log_search import LogSearch
from stackllama_console.readers.logs import LONGEST, LogReader
from stackllama_engine.contract.run_dir import RunDir


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


def reader_of(log: Path, text: str | bytes, capacity: int = 10) -> LogReader:
    log.write_bytes(text.encode() if isinstance(text, str) else text)
    reader = LogReader(log, capacity=capacity)
    reader.poll()
    return reader


def finished(search: LogSearch) -> LogSearch:
    while not search.is_done:
        search.step()
    return search


def places(search: LogSearch) -> list[int]:
    """Return all matches by going from one to the next."""
    found = list[int]()
    while (place := search.after(found[-1] if found else -1)) is not None and place not in found:
        found.append(place)
    return found


def small_blocks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    for module in (log_file, log_search):
        monkeypatch.setattr(module, "BLOCK", size)
    monkeypatch.setattr(log_file, "_PAGE", size)
    monkeypatch.setattr(log_search, "_BLOCKS", 4)


def test_lines_that_are_no_longer_kept_are_found(log: Path) -> None:
    text = "".join(f"line {index:05d}\n" for index in range(50_000))
    reader = reader_of(log, text)
    search = finished(LogSearch(reader, "line 00007"))
    assert places(search) == [7 * 11] and len(reader.lines) == 10
    assert search.position(77) == 1 and search.position(88) is None
    assert len(finished(LogSearch(reader, "9"))) == sum("9" in f"{index:05d}" for index in range(50_000))
    assert places(finished(LogSearch(reader, "absent"))) == []


@pytest.mark.parametrize("size", [64, 1000, 1 << 20])
def test_search_finds_what_is_shown_whatever_the_blocks(size: int, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(size)
    parts = [
        "a needle in plain text",
        "NEEDLE",
        "nothing",
        "nee\x1b[31mdle\x1b[0m",
        "needle\rtaken back",
        "taken back\rneedle",
        "日本語 needle",
        "",
        "x" * (LONGEST - 3) + "needle",
        "x" * (LONGEST - 6) + "needle",
        "y" * 3000 + "needle",
    ]
    lines = [generator.choice(parts) for _ in range(120)]
    reader = reader_of(log, "".join(f"{line}\n" for line in lines), capacity=10_000)
    small_blocks(monkeypatch, size)
    for text in ("needle", "NEEDLE", "語 n"):
        pattern = LogSearch(reader, text).pattern
        expected = [line.place for line in reader.lines if pattern.search(line.text)]
        assert places(finished(LogSearch(reader, text))) == expected, text


def test_nearest_matches_come_first_and_progress_is_told(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of(log, "needle xyz\n" * 1000)
    small_blocks(monkeypatch, 110)
    search = LogSearch(reader, "needle")
    assert search.share == 0 and not search.is_done
    search.step()
    assert len(search) == 36 and search.before(reader.end) == 999 * 11 and not search.is_done
    assert search.share == pytest.approx(0.036)
    assert (search.after(999 * 11), search.before(964 * 11)) == (964 * 11, 999 * 11), "of those found so far"
    finished(search)
    assert search.share == 1 and len(search) == 1000 and search.position(0) == 1


def test_search_follows_the_file(log: Path) -> None:
    reader = reader_of(log, "needle\nother\n")
    search = finished(LogSearch(reader, "needle"))
    with log.open("a") as file:
        file.write("needle 2\nneed")
    assert search.is_done
    reader.poll()
    assert not search.is_done
    finished(search)
    assert places(search) == [0, 13]
    with log.open("a") as file:
        file.write("le\n")
    reader.poll()
    assert places(finished(search)) == [0, 13, 22]


def test_search_counts_lines_of_a_level_only(log: Path) -> None:
    reader = reader_of(
        log, "INFO:a:needle\nERROR:a:needle\nTraceback (most recent call last):\n  needle\nEnd: needle\n"
    )
    assert places(finished(LogSearch(reader, "needle", "error"))) == [14, 64, 73]
    assert len(finished(LogSearch(reader, "needle", "info"))) == 4


def test_search_holds_a_bounded_number_of_matches(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_search, "MOST", 100)
    small_blocks(monkeypatch, 70)
    reader = reader_of(log, "needle\n" * 1000)
    search = finished(LogSearch(reader, "needle"))
    assert search.is_full and 100 <= len(search) <= 110


def test_search_covers_what_is_kept_of_the_attempt_before(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    reader = LogReader(run)
    for number, text in ((1, "needle one\nopen needle"), (2, "needle two\n")):
        run.attempt_dir(number).mkdir(parents=True)
        (run.attempt_dir(number) / "log.txt").write_text(text)
        reader.poll()
    texts = {line.place: line.text for line in reader.lines}
    found = [texts[place] for place in places(finished(LogSearch(reader, "needle")))]
    assert found == ["needle one", "open needle", "needle two"]


def test_search_of_a_log_that_went_says_why(log: Path) -> None:
    reader = reader_of(log, "needle\n")
    log.unlink()
    search = finished(LogSearch(reader, "needle"))
    assert search.error is not None and "cannot search the log: No such file" in search.error
    assert finished(LogSearch(LogReader(RunDir(log.parent / "none")), "x")).error is None


def test_page_holds_the_lines_around_a_place(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 1000)
    reader = reader_of(log, "".join(f"line {index:05d}\n" for index in range(5000)))
    with LogFile.of(reader) as file:
        page = file.page(2000 * 11, 0, "debug")
        assert [line.text for line in page.lines] == [f"line {index:05d}" for index in range(1910, 2090)]
        assert (page.start, page.stop) == (1910 * 11, 2090 * 11) and page.lines[0].place == page.start
        assert file.page(0, 0, "debug").lines[0].place == 0
        assert file.page(reader.end, 0, "debug").lines[-1].text == "line 04999"


def test_page_of_a_level_reads_on_until_there_is_enough(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 500)
    lines = [f"{'ERROR' if index % 500 == 0 else 'INFO'}:a:{index:05d}" for index in range(5000)]
    reader = reader_of(log, "".join(f"{line}\n" for line in lines))
    level: Level = "error"
    place = next(line.place for line in reader.lines)
    with LogFile.of(reader) as file:
        assert [line.text for line in file.page(place, -1, level).lines] == [line for line in lines if "ERROR" in line]
        assert file.page(place, 1, level).lines == []


def test_endless_lines_neither_fill_the_memory_nor_hide_others(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 1000)
    reader = reader_of(log, "first\n" + "z" * 50_000 + "\nmiddle\n" + "y" * 9000 + "\nlast\n")
    with LogFile.of(reader) as file:
        at_last = file.page(reader.end, 0, "debug")
        assert [line.text[:6] for line in at_last.lines] == ["last"]
        long = file.page(at_last.start, -1, "debug")
        assert [line.text[:6] for line in long.lines] == ["yyyyyy", "last"] and len(long.lines[0].text) <= LONGEST + 10
        down, seen = 0, list[str]()
        while down < reader.end:
            start = down
            down, data = file.after(start, 1000)
            assert len(data) <= LONGEST + 1
            seen += [line.text[:6] for line in log_file.lines_of(data, start)]
        assert seen == ["first", "zzzzzz", "middle", "yyyyyy", "last"]
    assert places(finished(LogSearch(reader, "middle"))) == [6 + 50_001]
