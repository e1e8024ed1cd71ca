"""GPUs as lines: what stands there for 1, 2, 8 and 16 of them, at any width, and when something is wrong."""

import os

import pytest
from msgspec import structs
from tests.launch.fake_nvml import GIB, FakeNvml

from stackllama_console.gpu_lines import ASCII, GpuView, Line, gpu_lines, problems, process_lines, ranges
from stackllama_console.readers import gpu_processes as processes_module
from stackllama_console.readers.gpu_processes import GpuProcess, gpu_processes
from stackllama_engine.launch.nvml import Faults, GpuReading, Nvml


def read(fake: FakeNvml, count: int, **known: object) -> GpuView:
    """Return a view of so many fake GPUs, on each of which this process holds 1 GiB."""
    fake.count, fake.name = count, "NVIDIA H200"
    nvml = Nvml()
    nvml.open()
    return GpuView(gpus=tuple(nvml.read()), pids=frozenset({os.getpid()}), **known)  # type: ignore[arg-type]


def text(lines: list[Line]) -> list[str]:
    return ["".join(part for part, _ in line).rstrip() for line in lines]


def test_one_gpu_is_a_block_of_two_lines(gpus: FakeNvml) -> None:
    gpus.bits = 0x4
    first, second = text(gpu_lines(read(gpus, 1), 78))
    assert first == "GPU 0  NVIDIA H200   90 % ███████████████░░  60 °C  312 of 400 W  SW power cap"
    assert second == "       ▒▒░░░░░░░░░░░░░░░  █ this run 1.0 GiB + ▒ others 9.0 GiB of 80.0 GiB"
    wide = text(gpu_lines(read(gpus, 1), 120))
    assert wide[0].endswith("60 °C  312 of 400 W  1,755 of 1,980 MHz  SW power cap")


def test_a_name_stands_once(gpus: FakeNvml) -> None:
    lines = text(gpu_lines(read(gpus, 2), 78))
    assert len(lines) == 4 and "\n".join(lines).count("NVIDIA H200") == 1
    assert lines[2].startswith("GPU 1                91 % ")


def test_eight_gpus_have_a_row_each(gpus: FakeNvml) -> None:
    names, head, *rows = text(gpu_lines(read(gpus, 8), 78))
    assert names == "8 × NVIDIA H200, 80.0 GiB" and len(rows) == 8
    assert head == "GPU  util          memory █this run   ▒others   temp     power  clocks, errors"
    assert rows[7] == "  7   97 % ██████  ▒░░░░░   1.0 GiB  16.0 GiB  67 °C 312/400 W"


def test_more_are_a_heat_strip_above_their_rows(gpus: FakeNvml) -> None:
    view = read(gpus, 16)
    lines = text(gpu_lines(view, 78))
    assert lines[:6] == [
        "16 × NVIDIA H200, 80.0 GiB",
        "GPU         0   4   8   12",
        "utilization " + "█" * 16 + "  90–99 %",
        "memory      ▂▂▂▂▂▂▂▂▂▂▃▃▃▃▃▃  this run 16.0 GiB + others 264.0 GiB of 1.2 TiB",
        "temperature ▅▅▅▅▅▅▅▅▆▆▆▆▆▆▆▇  60–75 °C",
        "power       ▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇  4,998 of 6,400 W",
    ]
    assert len(lines) == 6 + 1 + 1 + 16
    assert len(gpu_lines(view, 78, 6)) == 6


@pytest.mark.parametrize(("count", "kinds"), [(1, (2, 2, 2)), (2, (2, 3, 4)), (8, (2, 2, 10)), (16, (2, 2, 6))])
def test_the_fullest_way_that_fits_is_taken(gpus: FakeNvml, count: int, kinds: tuple[int, ...]) -> None:
    view = read(gpus, count)
    assert tuple(len(gpu_lines(view, 78, most)) for most in (2, 3, 12)) == kinds
    assert gpu_lines(view, 78, 1) == []


@pytest.mark.parametrize("count", [1, 2, 8, 16])
@pytest.mark.parametrize("width", [78, 100, 158])
def test_no_line_of_ordinary_gpus_is_too_long(gpus: FakeNvml, count: int, width: int) -> None:
    gpus.bits = 0x4
    view = read(gpus, count)
    for most in (None, 2, 3, 12):
        lines = text(gpu_lines(view, width, most))
        assert [line for line in lines if len(line) > width] == []


def test_lines_stay_while_power_caps_come_and_go(gpus: FakeNvml) -> None:
    """A busy GPU is capped for moments: charts below must not move for it."""
    for count in (1, 2, 8, 16):
        calm = [len(gpu_lines(read(gpus, count), 78, most)) for most in (2, 3, 6, 12)]
        gpus.bits = 0x4
        assert [len(gpu_lines(read(gpus, count), 78, most)) for most in (2, 3, 6, 12)] == calm
        gpus.bits = 0


def test_what_is_wrong_is_said_in_full_in_every_way(gpus: FakeNvml) -> None:
    gpus.bits, gpus.uncorrected, gpus.rows = 0x40, 2, (0, 1, 1, 1)
    for count in (1, 2, 8, 16):
        view = read(gpus, count, xids={0: 79})
        for most in (None, 12):
            said = "\n".join(text(gpu_lines(view, 78, most)))
            if not said:
                continue
            for what in (
                "HW thermal slowdown",
                "2 uncorrectable ECC errors",
                "row remapping pending (needs a GPU reset)",
                "row remapping failed (the GPU must be replaced)",
                "GPU 0: Xid 79, GPU has fallen off the bus",
            ):
                assert what in said, (count, most, said)
    assert f"GPU {ranges(range(16))}: HW thermal slowdown" in said


def test_where_there_is_little_room_the_most_serious_is_said_first(gpus: FakeNvml) -> None:
    gpus.bits, gpus.uncorrected, gpus.rows = 0x40, 2, (0, 1, 1, 1)
    view = read(gpus, 16, xids={3: 79})
    assert text(gpu_lines(view, 78, 3))[2:] == ["! GPU 3: Xid 79, GPU has fallen off the bus, and 4 more"]
    assert text(gpu_lines(view, 78, 4))[2:] == [
        "! GPU 3: Xid 79, GPU has fallen off the bus",
        f"! GPU {ranges(range(16))}: 2 uncorrectable ECC errors, and 3 more",
    ]
    assert all(len(line) <= 78 for line in text(gpu_lines(view, 78)))


@pytest.mark.parametrize("count", [16, 64, 72])
@pytest.mark.parametrize("width", [40, 78])
def test_the_shortest_way_fits(gpus: FakeNvml, count: int, width: int) -> None:
    view = read(gpus, count)
    full = tuple(
        structs.replace(gpu, memory_used=100 * GIB + 2**29, memory_total=141 * GIB, processes={os.getpid(): 61 * GIB})
        for gpu in view.gpus
    )
    first, second = text(gpu_lines(structs.replace(view, gpus=full), width, 2))
    assert len(first) <= width and len(second) <= width
    if count == 16 and width == 78:
        assert second.endswith("  this run 976 GiB + others 632 GiB of 2.2 TiB")


def test_a_power_cap_is_no_problem() -> None:
    gpu = GpuReading(index=0, name="", slowed=["SW power cap"], faults=Faults(index=0, uncorrected=0))
    assert problems(gpu) == []


def test_memory_is_used_where_no_process_of_the_run_is_seen(gpus: FakeNvml) -> None:
    """In a container NVML shows none, or others' pids: what the run holds is not others'."""
    gpus.pid = 1
    (block,) = [line for line in text(gpu_lines(read(gpus, 1), 78)) if "GiB" in line]
    assert block.endswith("used 10.0 GiB of 80.0 GiB")
    head, row = text(gpu_lines(read(gpus, 8), 78))[1:3]
    assert "used" in head and "others" not in head and "10.0 GiB" in row


def test_gpus_that_report_nothing_are_shown_as_unknown(gpus: FakeNvml) -> None:
    for name in ("memory", "utilisation", "power", "limit", "temperature", "processes", "clock", "ecc", "rows"):
        gpus.refused[name] = 3  # NVML_ERROR_NOT_SUPPORTED
    for count in (1, 2, 8, 16):
        for most in (None, 2, 3, 12):
            gpu_lines(read(gpus, count), 78, most)
    assert text(gpu_lines(read(gpus, 1), 78))[1].endswith("memory unknown")
    assert "·" * 16 in "\n".join(text(gpu_lines(read(gpus, 16), 78)))


def test_ascii(gpus: FakeNvml) -> None:
    drawn = "".join(text(gpu_lines(read(gpus, 16), 78, glyphs=ASCII)))
    assert "9" * 16 in drawn and not set("█▒░▁▂▃▄▅▆▇") & set(drawn)


def test_ranges() -> None:
    assert (ranges([0, 1, 2, 5, 7, 8]), ranges([3]), ranges([])) == ("0-2, 5, 7-8", "3", "")


def test_processes_are_named_by_their_run_or_program(gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    view = read(gpus, 1)
    (one, two, three) = sorted(gpu_processes(view.gpus), key=lambda each: each.pid)
    assert (one.pid, one.memory, two.pid, two.memory) == (4, 2 * GIB, 5, None)
    assert three.pid == os.getpid() and three.program and three.user and three.run is None
    monkeypatch.setattr(processes_module, "marked_run", lambda proc: None if proc.name != "4" else proc / "my-run")
    found = gpu_processes(view.gpus)
    assert found[0].run == "my-run"
    head, *lines = text(process_lines(found))
    assert head == "GPU       pid     memory  run or program" and lines[0].endswith("2.0 GiB  my-run")
    assert process_lines([]) == []
    assert [line[-1][1] for line in process_lines(found)[1:]] == ["ours", "others", "others"]
    assert [line[-1][1] for line in process_lines(found, {os.getpid()})[1:]] == ["others", "ours", "others"]


def test_a_process_that_cannot_be_seen_has_no_program() -> None:
    gone = GpuProcess(gpu=0, pid=1 << 22, memory=1)
    assert text(process_lines([gone]))[1].endswith("not seen from here")
