"""GPU errors, as a fake NVML reports them."""

import os
from pathlib import Path

import pynvml  # pyright: ignore[reportMissingTypeStubs]
import pytest

from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.run_dir import Home, Launch, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import watch
from stackllama_engine.launch.gpu_watch import GpuWatch, watched_cards
from stackllama_engine.launch.processes import identify
from stackllama_engine.launch.watch import Watch

from .conftest import Clock
from .fake_nvml import FakeNvml


def launch(**environment: str) -> Launch:
    return Launch(argv=[], cwd="/", host="here", created=1.0, environment=environment)


def test_gpu_watch_is_quiet_without_gpus(gpus: FakeNvml, clock: Clock) -> None:
    gpus.refused["init"] = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    watched = GpuWatch(clock=clock)
    assert watched.poll() == [] and watched.serious is None and watched.holders() == set() and watched.work({1}) == {}
    gpus.refused.clear()
    clock.now += 1e6
    assert watched.poll() == [] and gpus.opened == 0, "not asked again"


def test_an_xid_is_reported_once_and_only_for_the_runs_gpus(gpus: FakeNvml, clock: Clock) -> None:
    gpus.count = 2
    watched = GpuWatch([1], clock)
    assert watched.poll() == [] and gpus.registered == [0, 1]
    gpus.reported = [(0, 13), (1, 79), (1, 4711)]
    assert watched.poll() == [
        "GPU 1: Xid 79, GPU has fallen off the bus.",
        "GPU 1: Xid 4711.",
    ]
    assert watched.poll() == [] and watched.serious == "GPU 1: Xid 4711."


def test_only_new_ecc_errors_and_remappings_are_reported(gpus: FakeNvml, clock: Clock) -> None:
    gpus.uncorrected, gpus.rows = 7, (1, 2, 0, 0)
    watched = GpuWatch(clock=clock)
    assert watched.poll() == []
    gpus.uncorrected, gpus.rows = 9, (1, 3, 1, 1)
    ecc, row, none_left = watched.poll()
    assert ecc == "GPU 0: 2 new uncorrectable ECC errors."
    assert "row remapping pending" in row and "no spare rows left" in none_left
    assert watched.poll() == []


def test_throttling_is_reported_when_it_lasts_and_not_at_every_poll(gpus: FakeNvml, clock: Clock) -> None:
    watched = GpuWatch(clock=clock)
    gpus.bits = 0x1 | 0x4  # idle, power cap: ordinary
    assert [watched.poll() for _ in range(3)] == [[], [], []]
    gpus.bits = 0x40 | 0x80
    assert watched.poll() == [], "for a moment"
    assert watched.poll() == [
        "GPU 0: clocks reduced, HW thermal slowdown.",
        "GPU 0: clocks reduced, HW power brake.",
    ]
    assert watched.poll() == [] and watched.serious is None, "explains no failure"
    clock.now += 601
    assert len(watched.poll()) == 2


def test_loss_and_return_of_nvml_are_reported_once(gpus: FakeNvml, clock: Clock) -> None:
    watched = GpuWatch(clock=clock)
    assert watched.poll() == []
    gpus.refused["wait"] = gpus.refused["init"] = pynvml.NVML_ERROR_GPU_IS_LOST
    (lost,) = watched.poll()
    assert "NVML failed (error 15)" in lost and watched.serious == lost
    clock.now += 31
    assert watched.poll() == []
    gpus.refused.clear()
    clock.now += 31
    assert watched.poll() == ["NVML works again: the GPUs are monitored."]


def test_gpus_without_error_counters_cause_no_notice(gpus: FakeNvml, clock: Clock) -> None:
    for name in ("ecc", "rows", "reasons", "events"):
        gpus.refused[name] = pynvml.NVML_ERROR_NOT_SUPPORTED
    gpus.refused["old reasons"] = pynvml.NVML_ERROR_NOT_SUPPORTED
    watched = GpuWatch(clock=clock)
    assert watched.poll() == watched.poll() == []


def test_watched_cards_of_a_run() -> None:
    assert watched_cards(launch(ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="")) == ()
    assert watched_cards(launch(ACCELERATE_USE_CPU="false", CUDA_VISIBLE_DEVICES="2,0")) == [2, 0]
    assert watched_cards(launch(CUDA_VISIBLE_DEVICES="MIG-1")) is None and watched_cards(launch()) is None


# beside a run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = Home(tmp_path / "home").create(Stage.SFT, "{}")
    made.attempt_dir(1).mkdir()
    return made


def notices(run: RunDir) -> list[str]:
    return [event.data["message"] for path in run.health_files() for event in EventReader(path).read()]


def watched(run: RunDir, clock: Clock, **environment: str) -> Watch:
    return Watch(run, run.attempt_dir(1), launch(**environment), Stage.SFT, clock)


def test_a_gpu_error_is_in_the_health_journal_and_the_cause(gpus: FakeNvml, run: RunDir, clock: Clock) -> None:
    watching = watched(run, clock)
    watching.poll()
    assert notices(run) == [] and watching.explain("ValueError in phase train: x") == "ValueError in phase train: x"
    gpus.reported = [(0, 94)]
    clock.now += 60
    watching.poll()
    notice = "GPU 0: Xid 94, contained ECC error."
    assert notices(run) == [notice]
    assert watching.explain("RuntimeError in phase train: CUDA error") == (
        f"RuntimeError in phase train: CUDA error. A GPU error was logged at the same time: {notice}"
    )


def test_a_run_on_the_cpu_does_not_open_nvml(gpus: FakeNvml, run: RunDir, clock: Clock) -> None:
    watched(run, clock, ACCELERATE_USE_CPU="true").poll()
    assert gpus.opened == 0


def test_gpu_memory_of_ended_processes_is_reported(
    gpus: FakeNvml, run: RunDir, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(watch.time, "sleep", sleep)
    me = identify(os.getpid())
    assert me is not None
    monkeypatch.setattr(watch, "run_processes", lambda _: [me])
    gpus.pid = me.pid
    watching = watched(run, clock)
    watching.poll()
    watching.end()
    assert notices(run) == [f"GPU memory is still allocated to processes that have ended: pid {me.pid}."]
    watching = watched(run, clock)
    watching.poll()
    gpus.pid = 1
    watching.end()
    assert len(notices(run)) == 1, "another program's memory is not ours to wait for"
