"""TensorBoard's event files: both encodings of a scalar, truncated and damaged files, other values."""

import math
import random
import struct
from pathlib import Path

import pytest

from stackllama_console.readers import tensorboard
from stackllama_console.readers.tensorboard import EventFile, masked_crc32c, read_event

from .event_bytes import blob, double, event, integer, masked, record, scalar, tensor, varint, version


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.out.tfevents.1000.host.1.0"


def test_masked_crc_matches_a_known_value() -> None:
    raw = (masked_crc32c(b"123456789") - 0xA282EAD8) & 0xFFFFFFFF
    assert (raw >> 17 | raw << 15) & 0xFFFFFFFF == 0xE3069283  # RFC 3720's check value
    assert masked_crc32c(b"\x18\0\0\0\0\0\0\0") == masked(b"\x18\0\0\0\0\0\0\0")


def test_event_file_returns_scalars(path: Path) -> None:
    path.write_bytes(
        version() + event(1, scalar("loss", 2.5), scalar("lr", 0.5), time=1234.5) + event(2, scalar("loss", 2.0))
    )
    found = EventFile(path).read()
    assert [(s.tag, s.step, s.value) for s in found] == [("loss", 1, 2.5), ("lr", 1, 0.5), ("loss", 2, 2.0)]
    assert found[0].time == 1234.5


@pytest.mark.parametrize(
    ("content", "dtype", "value"),
    [
        (blob(4, struct.pack("<f", 1.5)), 1, 1.5),
        (blob(4, struct.pack("<d", 1e300)), 2, 1e300),
        (blob(5, struct.pack("<f", 0.25)), 1, 0.25),
        (b"\x2d" + struct.pack("<f", 0.25), 1, 0.25),
        (blob(6, struct.pack("<d", -3.0)), 2, -3.0),
    ],
)
def test_event_file_reads_scalar_tensors(content: bytes, dtype: int, value: float, path: Path) -> None:
    path.write_bytes(event(7, tensor("loss", content, dtype)))
    assert [(s.tag, s.step, s.value) for s in EventFile(path).read()] == [("loss", 7, value)]


def test_event_file_skips_other_values(path: Path) -> None:
    one_dimension = blob(2, integer(1, 2))
    path.write_bytes(
        event(1, tensor("vector", blob(4, struct.pack("<2f", 1, 2)), 1, one_dimension))
        + event(1, tensor("text", blob(8, b"words"), 7))
        + event(1, tensor("integer", integer(7, 3), 3))
        + event(1, blob(1, blob(1, b"image") + blob(4, b"pixels")))
        + event(1, blob(1, blob(1, b"histogram") + blob(5, double(1, 0.0))))
        + record(double(1, 1.0) + blob(4, b"a graph"))
        + event(2, scalar("loss", 1.0))
    )
    file = EventFile(path)
    assert [s.tag for s in file.read()] == ["loss"] and file.bad_records == 0


def test_event_file_reads_non_finite_values_and_negative_steps(path: Path) -> None:
    path.write_bytes(event(-1, scalar("loss", math.nan)) + event(1 << 40, scalar("loss", -math.inf)))
    first, second = EventFile(path).read()
    assert first.step == -1 and math.isnan(first.value) and (second.step, second.value) == (1 << 40, -math.inf)


def test_reading_in_portions_gives_the_same_scalars(path: Path) -> None:
    generator = random.Random(3)
    events = [event(step, scalar("loss", generator.random()), scalar("日本", step)) for step in range(200)]
    whole = version() + b"".join(events)
    path.write_bytes(whole)
    at_once = EventFile(path).read()
    assert len(at_once) == 400
    for seed in range(5):
        chunks, growing = random.Random(seed), path.with_name(f"events.out.tfevents.{seed}")
        file, found, at = EventFile(growing), [], 0
        while at < len(whole):
            size = chunks.choice([1, 3, 11, 12, 13, 500])
            with growing.open("ab") as out:
                out.write(whole[at : at + size])
            at += size
            found += file.read()
        assert found == at_once and not file.broken and file.bad_records == 0


def test_long_file_is_read_in_portions(path: Path) -> None:
    path.write_bytes(b"".join(event(step, scalar("loss", step)) for step in range(1000)))
    file = EventFile(path)
    found = file.read(1000)
    assert 0 < len(found) < 50 and file.behind
    while file.behind:
        found += file.read(1000)
    assert [s.step for s in found] == list(range(1000)) and file.read(1000) == []


def test_large_records_are_skipped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "_LONGEST", 5000)
    image = record(double(1, 1.0) + blob(4, b"x" * 4000))
    huge = record(double(1, 1.0) + blob(4, b"x" * 9000))
    parts = [event(1, scalar("a", 1.0)), image, event(2, scalar("a", 2.0)), huge, event(3, scalar("a", 3.0))]
    path.write_bytes(b"".join(parts))
    file, found = EventFile(path), []
    for _ in range(10):
        found += file.read(100)
    assert [s.step for s in found] == [1, 2, 3] and not file.behind and file.bad_records == 0
    path.write_bytes(b"".join(parts)[:-60])  # truncated within the huge one or after it: nothing is lost
    assert [s.step for s in EventFile(path).read()] == [1, 2]


def test_damage_ends_reading_and_is_counted_once(path: Path) -> None:
    good = event(1, scalar("loss", 1.0))
    path.write_bytes(good + b"\xff" * 40)
    file = EventFile(path)
    assert [s.step for s in file.read()] == [1]
    assert file.broken and file.bad_records == 1
    with path.open("ab") as out:
        out.write(b"\xff" * 40)
    assert file.read() == [] and file.bad_records == 1
    path.write_bytes(good + event(2, scalar("loss", 2.0)) + event(3, scalar("loss", 3.0)))  # repaired
    assert [s.step for s in file.read()] == [2, 3] and not file.broken


def test_bad_event_costs_only_itself(path: Path) -> None:
    path.write_bytes(
        record(b"\xff\xff\xff")
        + record(blob(5, b"\x0a\x7fcut"))
        + record(varint(5 << 3 | 3))
        + record(b"\x80" * 20)
        + event(2, scalar("loss", 2.0))
    )
    file = EventFile(path)
    assert [s.step for s in file.read()] == [2] and file.bad_records == 4


def test_read_event_raises_only_documented_errors() -> None:
    generator = random.Random(1)
    whole = integer(2, 5) + blob(5, scalar("loss", 1.0) + tensor("x", blob(4, b"1234")))
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        try:
            read_event(bytes(data[: generator.randint(0, len(data))]))
        except (ValueError, struct.error):
            continue


def test_truncated_or_replaced_file_is_read_again(path: Path) -> None:
    path.write_bytes(event(1, scalar("a", 1.0)) + event(2, scalar("a", 2.0)))
    file = EventFile(path)
    assert len(file.read()) == 2 and file.read() == []
    path.write_bytes(event(9, scalar("a", 9.0)))
    assert [s.step for s in file.read()] == [9] and file.restarts == 1
    path.unlink()
    assert file.read() == []


def test_event_file_refuses_a_directory(path: Path) -> None:
    path.mkdir()
    with pytest.raises(OSError, match="not a regular file"):
        EventFile(path).read()
