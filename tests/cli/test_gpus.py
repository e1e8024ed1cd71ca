"""`gpus`: the machine's GPUs as lines, as JSON, and again and again."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml  # pyright: ignore[reportMissingTypeStubs]
import pytest
from tests.launch.conftest import gpus
from tests.launch.fake_nvml import GIB, FakeNvml

from stackllama_console.cli import gpus as command
from stackllama_console.readers.gpu_processes import gpu_processes
from stackllama_console.readers.machine import Machine

__all__ = ["gpus"]


def test_every_gpu_is_printed_with_its_processes(run_main: Callable[..., Any], gpus: FakeNvml) -> None:
    gpus.count = 8
    result = run_main("gpus")
    assert result.code == 0 and result.out.splitlines()[0].startswith("8 × A GPU") and "\x1b" not in result.out
    assert result.out.count("312/400 W") == 8 and "run or program" in result.out
    plain = run_main("gpus", "--ascii").out
    assert "#" in plain and "█" not in plain and run_main("--ascii", "gpus").out == plain


def test_json_has_every_value(run_main: Callable[..., Any], gpus: FakeNvml) -> None:
    gpus.count, gpus.bits, gpus.reported = 2, 0x40, [(1, 79)]
    facts = run_main("gpus", "--json").json()
    assert facts["note"] is None and facts["error"] is None and facts["host"] and facts["time"]
    first, second = facts["gpus"]
    assert (first["index"], first["utilisation"], first["memory_used"], first["power_limit"]) == (0, 90, 10 * GIB, 400)
    assert first["slowed"] == ["HW thermal slowdown"] and first["faults"]["uncorrected"] == 0
    assert (first["xid"], second["xid"]) == (None, 79)
    assert {"gpu": 1, "pid": 4, "memory": 2 * GIB, "run": None}.items() <= next(
        one for one in second["processes"] if one["pid"] == 4
    ).items()


def test_no_gpu_is_a_sentence_and_a_broken_driver_a_failure(run_main: Callable[..., Any], gpus: FakeNvml) -> None:
    gpus.refused["init"] = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    result = run_main("gpus")
    assert (result.code, result.err) == (0, "") and result.out.startswith("no GPU (") and result.out.count("\n") == 1
    assert run_main("gpus", "--json").json()["gpus"] == []


def test_watch_prints_until_it_is_interrupted(
    run_main: Callable[..., Any], gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(command.time, "sleep", sleep)
    result = run_main("gpus", "--watch", "--json")
    assert result.code == 130
    assert [len(json.loads(line)["gpus"]) for line in result.out.splitlines()] == [1, 1, 1]
    waits.clear()
    assert run_main("gpus", "--watch").out.count("GPU 0  A GPU") == 3


def test_a_terminal_is_drawn_over(
    run_main: Callable[..., Any], gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([None])
    monkeypatch.setattr(command, "can_redraw", lambda _: True)
    monkeypatch.setattr(command.shutil, "get_terminal_size", lambda *_: os.terminal_size((40, 4)))

    def sleep(_: float) -> None:
        if next(times, "over") == "over":
            raise KeyboardInterrupt

    monkeypatch.setattr(command.time, "sleep", sleep)
    first, second = run_main("gpus", "--watch").out.split("\x1b[3F")
    for drawn in (first, second):
        lines = drawn.replace("\x1b[J", "").splitlines()
        assert len(lines) == 3 and all(len(line.replace("\x1b[K", "")) < 40 for line in lines)


def test_many_gpus_take_the_way_that_fits_and_the_rest_is_counted(
    gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpus.count = 16
    reading = Machine(tmp_path).read()
    rows = {}
    for height in (24, 4):
        size = os.terminal_size((100, height))
        monkeypatch.setattr(command.shutil, "get_terminal_size", lambda *_, size=size: size)
        rows[height] = ["".join(text for text, _ in line) for line in command._fitting(reading, (), False)]
    assert len(rows[24]) <= 23 and not any("more lines" in row for row in rows[24])
    assert len(rows[4]) == 2 and rows[4][0].startswith("16 GPUs")
    monkeypatch.setattr(command.shutil, "get_terminal_size", lambda *_: os.terminal_size((100, 2)))
    assert command._fitting(reading, (), False)[0][0][0].startswith("… and ")  # not "no GPU"
    processes = gpu_processes(reading.gpus)  # 48
    monkeypatch.setattr(command.shutil, "get_terminal_size", lambda *_: os.terminal_size((100, 24)))
    lines = ["".join(text for text, _ in line) for line in command._fitting(reading, processes, False)]
    assert len(lines) == 23 and lines[-1].startswith("… and ") and lines[-1].endswith(" more lines")
