"""Incremental reading of JSON lines: lines, positions of blocks, and the cost of a poll without update."""

from pathlib import Path

import msgspec
import pytest

from stackllama_engine.contract.line_reader import MAX_LINE, LineReader

DECODER = msgspec.json.Decoder(dict[str, int])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines.jsonl"


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def look(reader: LineReader) -> list[dict[str, int] | None]:
    return [value for lines in reader.blocks() for value in reader.decode(DECODER, lines)]


def test_decode_returns_a_value_per_line_and_none_for_bad_ones(path: Path) -> None:
    append(path, b'{"a":1}\n\nbad\n{"a":2}\n{"a":')
    reader = LineReader(path)
    assert look(reader) == [{"a": 1}, None, None, {"a": 2}]
    assert reader.bad_lines == 1
    append(path, b"3}\n")
    assert look(reader) == [{"a": 3}]


def test_decode_finds_one_bad_line_among_many(path: Path) -> None:
    lines = [b'{"a":%d}' % number for number in range(5000)]
    lines[3210] = b'{"a":"x"}'
    append(path, b"\n".join(lines) + b"\n")
    reader = LineReader(path)
    values = look(reader)
    assert reader.bad_lines == 1
    assert values == [None if number == 3210 else {"a": number} for number in range(5000)]


@pytest.mark.parametrize("portion", [1 << 30, 300_000, 700_001])
@pytest.mark.parametrize("excess", [0, 1])
def test_longest_line_does_not_depend_on_portions(path: Path, portion: int, excess: int) -> None:
    line = b'{"a":' + b" " * (MAX_LINE + excess - 7) + b"1}\n"
    data = b'{"a":0}\n' + line + b'{"a":2}\n'
    reader = LineReader(path)
    found: list[dict[str, int] | None] = []
    for start in range(0, len(data), portion):
        append(path, data[start : start + portion])
        found += look(reader)
    assert len(line) - 1 == MAX_LINE + excess
    assert reader.bad_lines == excess
    assert [value for value in found if value] == [{"a": 0}, *([] if excess else [{"a": 1}]), {"a": 2}]


def test_position_is_the_offset_of_the_last_block(path: Path) -> None:
    reader = LineReader(path)
    whole = b""
    for data in (b'{"a":1}\n{"a', b'":2}', b"\n\n", b"x" * (MAX_LINE + 10), b"xx\n" + b'{"a":4}\n', b"bad\n" * 200_000):
        append(path, data)
        whole += data
        for lines in reader.blocks():
            assert whole[reader.position : reader.position + len(lines)] == lines


def test_poll_without_update_opens_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(path, b'{"a":1}\n{"torn')
    reader = LineReader(path)
    assert look(reader) == [{"a": 1}]

    def no(*_: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(Path, "open", no)
    assert look(reader) == []


def test_deeply_nested_line_is_a_bad_line(path: Path) -> None:
    append(path, b'{"a":1}\n' + b'{"a":' * 100_000 + b'\n{"a":2}\n')
    reader = LineReader(path)
    assert [value for value in look(reader) if value] == [{"a": 1}, {"a": 2}]
    assert reader.bad_lines == 1
