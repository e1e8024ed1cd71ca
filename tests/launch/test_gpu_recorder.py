"""What the supervisor records of a run's GPUs: when, where on the axis of steps, how much of it."""

import os
from pathlib import Path

import pytest

from stackllama_engine.contract.events import Event, EventReader
from stackllama_engine.contract.gpu_metrics import GPU_FILE, gpu_metric, gpu_of
from stackllama_engine.contract.metrics import METRICS
from stackllama_engine.contract.run_dir import Home, Launch, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import gpu_recorder, watch
from stackllama_engine.launch.gpu_recorder import GpuRecorder
from stackllama_engine.launch.nvml import Faults, GpuReading
from stackllama_engine.launch.processes import identify
from stackllama_engine.launch.watch import Watch

from .conftest import Clock, Runs, wait_for
from .fake_nvml import GIB, FakeNvml
from .hanging_nvml import GPUS, install


def gpu(index: int = 0, utilisation: int | None = 80, degrees: int = 50, held: int = GIB) -> GpuReading:
    return GpuReading(
        index=index,
        name="A GPU",
        memory_used=10 * GIB,
        utilisation=utilisation,
        temperature=degrees,
        power=300.0,
        faults=Faults(index=index),
        processes={7: held, 8: GIB, 9: None},
    )


def step(number: int, time: float) -> Event:
    return Event(seq=number, time=time, kind="progress", step=number)


def written(folder: Path) -> list[Event]:
    return list(EventReader(folder / GPU_FILE).read())


def test_a_record_every_five_seconds(tmp_path: Path, clock: Clock) -> None:
    recorder = GpuRecorder(tmp_path, clock)
    recorder.event(step(0, 100.0))
    for _ in range(31):  # seconds
        recorder.poll([gpu()], {7})
        clock.now += 1
    assert len(written(tmp_path)) == 7  # at 0, 5, … 30
    recorder.close()


def test_a_record_has_means_and_extremes_of_its_time(tmp_path: Path, clock: Clock) -> None:
    recorder = GpuRecorder(tmp_path, clock)
    recorder.event(step(3, 100.0))
    recorder.poll([gpu()], {7})
    for rate, degrees, held in ((90, 70, 3), (70, 60, 2), (50, 50, 1)):
        clock.now += 2
        recorder.poll([gpu(utilisation=rate, degrees=degrees, held=held * GIB), gpu(1, None)], {7, 9})
    second = written(tmp_path)[1]
    assert second.metrics == {
        "gpu/0/utilization": 70.0,  # (90 + 70 + 50) / 3
        "gpu/0/power": 300.0,
        "gpu/0/temperature": 70,
        "gpu/0/memory": 3 * GIB,
        "gpu/0/memory_used": 10 * GIB,
        "gpu/1/power": 300.0,
        "gpu/1/temperature": 50,
        "gpu/1/memory": GIB,
        "gpu/1/memory_used": 10 * GIB,
    }
    assert second.step == 3 and second.data["seconds"] == 5.0
    assert second.data["processes"] == {"0": {"7": GIB}, "1": {"7": GIB}}


def test_nothing_is_recorded_before_a_step_is_known_or_without_gpus(tmp_path: Path, clock: Clock) -> None:
    """A resumed attempt would begin at 0 and hide what the one before it recorded."""
    recorder = GpuRecorder(tmp_path, clock)
    recorder.poll([gpu()], {7})
    recorder.event(step(40, 100.0))
    recorder.poll([], {7})
    recorder.close()
    assert not (tmp_path / GPU_FILE).exists()


def test_records_within_a_step_lie_between_it_and_the_next(tmp_path: Path, clock: Clock) -> None:
    recorder = GpuRecorder(tmp_path, clock)
    recorder.event(step(10, 1000.0))
    recorder.poll([gpu()], ())
    clock.now += 20
    recorder.event(step(11, 1020.0))  # 20 s per step
    for _ in range(6):
        recorder.poll([gpu()], ())
        clock.now += 5
    recorder.event(step(12, 1050.0))
    recorder.poll([gpu()], ())
    places = [event.data["position"] for event in written(tmp_path)]
    # 15 s are 0.75 of a step, placed at 1 - 1 / (4 * 0.75); 20 and 25 s likewise
    assert places == [10, 11, 11.25, 11.5, 11.666666667, 11.75, 11.8, 12]


def test_every_record_of_a_step_that_lasts_is_a_point_of_its_own(tmp_path: Path, clock: Clock) -> None:
    recorder = GpuRecorder(tmp_path, clock)
    recorder.event(step(4, 100.0))
    clock.now += 1
    recorder.event(step(5, 101.0))  # 1 s per step
    for _ in range(1000):  # nearly an hour and a half
        recorder.poll([gpu()], ())
        clock.now += 5
    places = [event.data["position"] for event in written(tmp_path)]
    assert len(places) == 1000 and places == sorted(set(places)) and places[0] == 5 and places[-1] < 6


def test_a_rollback_continues_from_its_smaller_step(tmp_path: Path, clock: Clock) -> None:
    recorder = GpuRecorder(tmp_path, clock)
    for number, kind in ((8, "progress"), (9, "progress"), (7, "samples"), (6, "progress"), (7, "progress")):
        recorder.event(Event(seq=1, time=clock.now, kind=kind, step=number))  # type: ignore[arg-type]
        recorder.poll([gpu()], ())
        clock.now += 10
    assert [event.data["position"] for event in written(tmp_path)] == [8, 9, 9.75, 6, 7]


def test_a_first_attempt_records_from_its_start_on(tmp_path: Path, clock: Clock) -> None:
    recorder = GpuRecorder(tmp_path, clock, step=0)
    for _ in range(3):  # 0, 15 and 30 s of an assumed minute
        recorder.poll([gpu()], ())
        clock.now += 15
    recorder.event(step(0, 45.0))
    recorder.poll([gpu()], ())  # 45 s
    clock.now += 5
    recorder.event(step(1, 55.0))  # 10 s, by the worker's clock
    clock.now += 5
    recorder.poll([gpu()], ())
    places = [event.data["position"] for event in written(tmp_path)]
    assert places == [0, 0.25, 0.5, 0.666666667, 1.5]


def test_the_time_between_records_doubles(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_recorder, "RECORDS", 4)
    recorder = GpuRecorder(tmp_path, clock)
    recorder.event(step(0, 1.0))
    for _ in range(200):  # 1,000 s
        recorder.poll([gpu()], ())
        clock.now += 5
    seconds = [event.data["seconds"] for event in written(tmp_path)]
    assert seconds[:13] == [5.0] * 4 + [10.0] * 4 + [20.0] * 4 + [40.0]
    assert len(seconds) < 30


def test_a_file_that_cannot_be_made_is_tried_again(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / GPU_FILE).mkdir()
    recorder = GpuRecorder(tmp_path, clock)
    recorder.event(step(0, 1.0))
    recorder.poll([gpu()], ())
    (tmp_path / GPU_FILE).rmdir()
    clock.now += 5
    recorder.poll([gpu()], ())
    assert len(written(tmp_path)) == 1


def test_names_of_metrics_are_defined() -> None:
    defined = {metric.name for metric in METRICS if metric.name.startswith("gpu/")}
    quantities = ("utilization", "power", "temperature", "memory", "memory_used")
    assert defined == {gpu_metric("*", quantity) for quantity in quantities}
    assert gpu_of("gpu/12/power") == (12, "power")
    assert [gpu_of(name) for name in ("gpu/x/power", "gpu/*/power", "gpu/0/power/1", "loss")] == [None] * 4


# beside a run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = Home(tmp_path / "home").create(Stage.SFT, "{}")
    made.attempt_dir(1).mkdir()
    return made


def watched(run: RunDir, clock: Clock, **environment: str) -> Watch:
    launch = Launch(argv=[], cwd="/", host="here", created=1.0, environment=environment)
    return Watch(run, run.attempt_dir(1), launch, Stage.SFT, clock)


@pytest.mark.parametrize("count", [1, 2, 8, 16])
def test_the_gpus_of_a_run_are_recorded(
    gpus: FakeNvml, run: RunDir, clock: Clock, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    me = identify(os.getpid())
    monkeypatch.setattr(watch, "run_processes", lambda _: [me])
    gpus.count = count + 1
    watching = watched(run, clock, CUDA_VISIBLE_DEVICES=",".join(map(str, range(1, count + 1))))
    watching.event(step(1, 1.0))
    for _ in range(3):
        watching.poll()
        clock.now += 5
    gpus.pid = 1  # its memory is free again
    watching.end()
    events = written(run.attempt_dir(1))
    assert len(events) == 3
    metrics = events[-1].metrics
    assert {of[0] for name in metrics if (of := gpu_of(name))} == set(range(1, count + 1))
    assert metrics["gpu/1/memory"] == GIB and metrics["gpu/1/memory_used"] == 11 * GIB
    assert metrics["gpu/1/utilization"] == 91.0 and metrics["gpu/1/temperature"] == 61


def test_a_run_on_the_cpu_records_no_gpu(gpus: FakeNvml, run: RunDir, clock: Clock) -> None:
    watching = watched(run, clock, ACCELERATE_USE_CPU="true")
    watching.event(step(1, 1.0))
    watching.poll()
    watching.end()
    assert not (run.attempt_dir(1) / GPU_FILE).exists()


def test_a_resumed_attempt_waits_for_its_first_step(gpus: FakeNvml, run: RunDir, clock: Clock) -> None:
    """What it would record before may lie where the attempt before it recorded."""
    (run.attempt_dir(1) / GPU_FILE).touch()
    run.attempt_dir(2).mkdir()
    launch = Launch(argv=[], cwd="/", host="here", created=1.0)
    for attempt in (1, 2):
        watching = Watch(run, run.attempt_dir(attempt), launch, Stage.SFT, clock)
        watching.poll()
        watching.end()
    assert written(run.attempt_dir(1)) and not (run.attempt_dir(2) / GPU_FILE).exists()


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 8])
def test_the_real_supervisor_records(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    for name, value in (install(tmp_path / "nvml") | {GPUS: str(count)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("STACKLLAMA_STALL_LOAD", "4")  # polls every 0.2 s
    run = runs.start("trains")
    wait_for(lambda: (run.attempt_dir(1) / GPU_FILE).exists() and bool(written(run.attempt_dir(1))))
    (record, *_) = written(run.attempt_dir(1))
    assert record.metrics["gpu/0/power"] == 312.4
    assert {of[0] for name in record.metrics if (of := gpu_of(name))} == set(range(count))
