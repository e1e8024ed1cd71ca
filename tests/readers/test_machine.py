"""Readings of the machine: a fake NVML that knows little, knows all, or vanishes; CPU; a run's own processes."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml  # pyright: ignore[reportMissingTypeStubs]
import pytest
from tests.launch.conftest import Clock
from tests.launch.fake_nvml import FakeNvml

from stackllama_console.readers import machine
from stackllama_console.readers.machine import Machine, MachineReading, describe, is_local, summary_of
from stackllama_engine.contract.run_dir import Launch
from stackllama_engine.launch import nvml
from stackllama_engine.launch.nvml import Faults, GpuReading
from stackllama_engine.launch.process_marks import RUN_MARK

GIB = 1 << 30
_IDLE = "import time; print('up', flush=True); time.sleep(100)"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a process that is marked as one of a run's."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(
        run: Path, code: str = "import time; print('up', flush=True); time.sleep(100)"
    ) -> subprocess.Popen[bytes]:
        environment = os.environ | {RUN_MARK: str(run)}
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline()
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_gpu_line_shows_every_value(gpus: FakeNvml, tmp_path: Path, clock: Clock) -> None:
    gpus.bits = 0x1 | 0x4 | 0x40
    found = Machine(tmp_path, clock).read()
    assert found.gpus == [
        GpuReading(
            index=0,
            name="A GPU",
            memory_used=10 * GIB,
            memory_total=80 * GIB,
            utilisation=90,
            temperature=60,
            power=312.4,
            power_limit=400.0,
            clock=1755,
            clock_max=1980,
            slowed=["SW power cap", "HW thermal slowdown"],
            faults=Faults(index=0, uncorrected=0, remapped=0, slowed=["HW thermal slowdown"]),
            processes={os.getpid(): GIB, 4: 2 * GIB, 5: None},
        )
    ]
    assert found.note is None and found.error is None
    assert summary_of(found.gpus) == (
        "GPU 0 90 % 10.0 GiB of 80.0 GiB 60 °C 312 of 400 W (SW power cap; HW thermal slowdown)"
    )
    assert describe(found).startswith("RAM ")


def test_values_that_nvml_lacks_are_none(gpus: FakeNvml, tmp_path: Path, clock: Clock) -> None:
    for name in ("memory", "utilisation", "power", "limit", "temperature", "processes", "clock", "ecc", "rows"):
        gpus.refused[name] = pynvml.NVML_ERROR_NOT_SUPPORTED
    gpus.refused["reasons"] = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    gpus.bits, gpus.name = 0x80, b"bytes"
    (gpu,) = Machine(tmp_path, clock).read().gpus
    slowed = ["HW power brake"]  # by the older function's name
    assert gpu == GpuReading(index=0, name="bytes", slowed=slowed, faults=Faults(index=0, slowed=slowed))
    gpus.refused["old reasons"] = pynvml.NVML_ERROR_NO_PERMISSION
    found = Machine(tmp_path, clock).read()
    assert found.gpus[0].slowed == [] and found.error is None and summary_of(found.gpus) == "GPU 0"


def test_many_gpus_are_one_summary(gpus: FakeNvml, tmp_path: Path, clock: Clock) -> None:
    gpus.count = 8
    text = summary_of(Machine(tmp_path, clock).read().gpus)
    assert text == "8 GPUs 90-97 % 108.0 GiB of 640.0 GiB up to 67 °C 2499 W"


def test_no_driver_is_a_note(gpus: FakeNvml, tmp_path: Path, clock: Clock) -> None:
    gpus.refused["init"] = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    watched = Machine(tmp_path, clock)
    found = watched.read()
    assert found.gpus == [] and found.error is None
    assert found.note is not None and found.note.startswith("no GPU (") and "\n" not in found.note
    assert describe(found).startswith("no GPU  ")
    gpus.refused.clear()
    clock.now += 10_000
    watched.read()
    assert gpus.opened == 0  # not asked again


def test_a_driver_without_gpus_is_a_note(gpus: FakeNvml, tmp_path: Path, clock: Clock) -> None:
    gpus.count = 0
    assert Machine(tmp_path, clock).read().note == "no GPU; runs use the CPU"


def test_vanished_nvml_is_reported_until_it_is_back(gpus: FakeNvml, tmp_path: Path, clock: Clock) -> None:
    watched = Machine(tmp_path, clock)
    assert watched.read().gpus and watched.read().gpus and gpus.opened == 1  # opened once
    gpus.refused["memory"] = gpus.refused["shutdown"] = pynvml.NVML_ERROR_GPU_IS_LOST
    for _ in range(3):
        found = watched.read()
        assert found.gpus == [] and found.note is None
        assert found.error == "cannot read the GPUs: error 15" and found.error in describe(found)
    assert gpus.opened == 1 and gpus.closed == 1
    gpus.refused["init"] = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    clock.now += machine.RETRY_SECONDS
    assert watched.read().error == "cannot read the GPUs: error 9"
    gpus.refused.clear()
    assert watched.read().gpus == []  # not asked yet
    clock.now += machine.RETRY_SECONDS
    found = watched.read()
    assert found.gpus and found.error is None and gpus.opened == 2
    watched.close()
    watched.close()
    assert gpus.closed == 2


def test_memory_held_by_some_processes(gpus: FakeNvml) -> None:
    ours = nvml.Nvml()
    ours.open()
    (gpu,) = ours.read()
    assert gpu.held_by([os.getpid(), 5]) == GIB and gpu.held_by([os.getpid(), 4]) == 3 * GIB and gpu.held_by([]) == 0


def test_the_newest_xid_of_each_gpu_is_kept(gpus: FakeNvml, tmp_path: Path, clock: Clock) -> None:
    gpus.count = 2
    watched = Machine(tmp_path, clock)
    assert watched.read().xids == {} and gpus.registered == [0, 1]
    gpus.reported = [(1, 13), (1, 79)]
    assert watched.read().xids == {1: 79} and watched.read().xids == {1: 79}


def test_find_gpus_closes_nvml_and_reports_its_error(gpus: FakeNvml) -> None:
    found, driver, error = nvml.find_gpus()
    assert (found[0].memory, found[0].free, driver, error) == (80 * GIB, 70 * GIB, "600.1", None)
    assert gpus.opened == gpus.closed == 1
    gpus.refused["memory"] = 15
    assert nvml.find_gpus() == ([], None, "error 15")


def test_reading_has_cpu_memory_and_disk(
    gpus: FakeNvml, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = [(100.0, 100.0), (130.0, 110.0), (130.0, 110.0)]

    def cpu_times() -> Any:
        class Times(tuple[float, ...]):
            idle = 0.0

        busy, idle = times.pop(0)
        made = Times((busy, idle))
        made.idle = idle
        return made

    monkeypatch.setattr(machine.psutil, "cpu_times", cpu_times)
    watched = Machine(tmp_path / "not" / "there", clock)
    first, second, third = watched.read(), watched.read(), watched.read()
    assert (first.cpu, second.cpu, third.cpu) == (None, 75.0, None)
    assert 0 < first.memory_used < first.memory_total and len(first.load) == 3
    assert first.disk_free is not None and abs(first.disk_free - shutil.disk_usage(tmp_path).free) < GIB
    assert first.run_memory is None and first.run_cpu is None and first.run_processes == 0
    assert "CPU 75 %" in describe(second)


def test_processes_of_a_run_are_measured(
    gpus: FakeNvml, tmp_path: Path, clock: Clock, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    process = start(run)
    start(other)
    watched = Machine(tmp_path, clock)
    found = watched.read(run)
    assert found.run_processes == 1 and found.run_memory is not None and 1 << 20 < found.run_memory < GIB
    assert found.run_cpu is None and found.gpus[0].held_by(found.run_pids) == 0
    gpus.pid = process.pid
    found = watched.read(run)
    assert found.run_pids == {process.pid} and found.gpus[0].held_by(found.run_pids) == GIB
    clock.now += 1
    found = watched.read(run)
    assert found.run_cpu is not None and 0 <= found.run_cpu < 100 and "this run " in describe(found)
    start(run)
    assert watched.read(run).run_processes == 1  # not looked for again yet
    clock.now += machine.FIND_SECONDS
    assert watched.read(run).run_processes == 2
    process.kill()
    process.wait()
    clock.now += 1
    assert watched.read(run).run_processes == 1
    assert watched.read(other).run_processes == 1  # another run is looked for at once
    assert watched.read(None).run_memory is None


def test_cpu_share_of_a_running_run(
    gpus: FakeNvml, tmp_path: Path, clock: Clock, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    start(tmp_path, "print('up', flush=True)\nwhile True: pass")
    watched = Machine(tmp_path, clock)
    watched.read(tmp_path)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        clock.now += 1
        if watched.read(tmp_path).run_cpu:
            return
        time.sleep(0.05)
    pytest.fail("it never seemed to work")


def test_a_pid_that_was_reused_is_not_the_runs(
    gpus: FakeNvml,
    tmp_path: Path,
    clock: Clock,
    start: Callable[..., subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from stackllama_engine.launch.processes import identify

    process = start(tmp_path)
    known = identify(process.pid)
    assert known is not None
    earlier = type(known)(boot_id=known.boot_id, pid=known.pid, start_time=known.start_time - 1)
    monkeypatch.setattr(machine, "run_processes", lambda _: [earlier])
    assert Machine(tmp_path, clock).read(tmp_path).run_processes == 0


def test_is_local_compares_hosts() -> None:
    here = Launch(argv=[], cwd="/", host=socket.gethostname(), created=0.0)
    assert is_local(here) and not is_local(Launch(argv=[], cwd="/", host="elsewhere", created=0.0))


def test_describe_leaves_out_missing_values() -> None:
    assert describe(MachineReading(memory_used=GIB, memory_total=2 * GIB)) == "RAM 1.0 GiB of 2.0 GiB"
