"""NVML, a file system or a debugger that hangs: it is reported, and nothing else waits for it."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stackllama_console.cli import doctor
from stackllama_console.readers import budget_inputs, machine
from stackllama_console.readers.budget_inputs import read_devices
from stackllama_console.readers.machine import Machine
from stackllama_engine.contract.errors import RefusedError
from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.run_dir import Home, Launch, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import disk, gpu_watch, gpus, launcher, nvml, stack_dumps, watch
from stackllama_engine.launch.gpu_watch import GpuWatch
from stackllama_engine.launch.timeouts import Asker, UnansweredError
from stackllama_engine.launch.watch import Watch

from .conftest import Clock, Runs, wait_for, wait_for_phase
from .fake_nvml import FakeNvml
from .hanging_nvml import CALLS, REACHED, install

_SHORT = 0.2


class Hanging(FakeNvml):
    """Hangs in a function until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs_in = ""
        self.released = threading.Event()
        self.threads: set[int] = set()

    def _may(self, name: str) -> None:
        super()._may(name)
        if name == self.hangs_in:
            self.threads.add(threading.get_ident())
            self.released.wait()


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    fake = Hanging()
    monkeypatch.setattr(nvml, "pynvml", fake)
    monkeypatch.setattr(gpus, "pynvml", fake)
    asker = Asker("NVML")
    for module in (nvml, gpus, gpu_watch, machine):
        monkeypatch.setattr(module, "NVML", asker)
    monkeypatch.setattr(gpu_watch, "_SECONDS", _SHORT)
    for module in (machine, budget_inputs):
        monkeypatch.setattr(module, "NVML_SECONDS", _SHORT)
    yield fake
    fake.released.set()
    wait_for(lambda: not asker.hangs)  # else its thread would use the next test's stand-in


# asking


def test_asker_waits_for_a_hanging_call_once_and_returns_its_answer_later() -> None:
    asker, release = Asker("the oracle"), threading.Event()
    asked = asker.ask(lambda: release.wait() and 42, 1.0)
    with pytest.raises(UnansweredError, match="the oracle has not answered for 0 s"):
        asked.answer(_SHORT)
    threads = threading.active_count()
    for _ in range(20):
        with pytest.raises(UnansweredError):
            asker.answer(lambda: 1, 0.0)
    assert threading.active_count() == threads, "threads pile up"
    release.set()
    assert asked.answer(60) == 42 and asker.answer(lambda: 1, 60) == 1


def test_asker_raises_what_the_call_raises() -> None:
    asker = Asker("the oracle")
    with pytest.raises(ZeroDivisionError):
        asker.answer(lambda: 1 // 0, 60)
    assert asker.answer(lambda: 2, 60) == 2


# watching a run


def health(run: RunDir) -> list[str]:
    return [event.data["message"] for path in run.health_files() for event in EventReader(path).read()]


@pytest.mark.parametrize("function", ["init", "utilisation", "ecc", "rows", "reasons", "wait", "processes"])
def test_a_hanging_driver_is_reported_once_and_so_is_its_end(
    hanging: Hanging, clock: Clock, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    watched = GpuWatch(clock=clock)
    hanging.hangs_in = function
    assert watched.poll() == [] and watched.work([os.getpid()]) == {} and watched.serious is None
    assert watched.holders() is None
    monkeypatch.setattr(gpu_watch, "_SILENT_SECONDS", 0.0)
    (said,) = watched.poll()
    assert said.startswith("NVML has not answered for ") and watched.serious == said
    assert [watched.poll() for _ in range(3)] == [[], [], []] and len(hanging.threads) == 1
    hanging.hangs_in = ""
    hanging.released.set()
    wait_for(lambda: watched.poll() == ["NVML answers again."])
    assert watched.poll() == [] and watched.holders() == {os.getpid(), 4, 5}


def test_a_stale_answer_does_not_hide_a_stall(hanging: Hanging, clock: Clock) -> None:
    watched = GpuWatch(clock=clock)
    watched.poll()
    assert watched.work([os.getpid()]) == {os.getpid(): 90}
    hanging.hangs_in = "ecc"
    watched.poll()
    assert watched.work([os.getpid()]) == {}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = Home(tmp_path / "home").create(Stage.SFT, "{}")
    made.attempt_dir(1).mkdir()
    return made


def watching(run: RunDir, clock: Clock) -> Watch:
    return Watch(run, run.attempt_dir(1), Launch(argv=[], cwd="/", host="here", created=1.0), Stage.SFT, clock)


def test_the_end_of_a_run_does_not_wait_for_a_hanging_driver(
    hanging: Hanging, run: RunDir, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_MEMORY_SECONDS", 1e9)
    watched = watching(run, clock)
    watched.poll()
    hanging.hangs_in = "processes"
    watched.end()
    assert hanging.threads and health(run) == []


def test_a_hanging_file_system_is_a_notice(
    run: RunDir, clock: Clock, monkeypatch: pytest.MonkeyPatch, gpus: FakeNvml
) -> None:
    release = threading.Event()
    monkeypatch.setattr(os, "statvfs", lambda _: release.wait())
    monkeypatch.setattr(disk, "_SECONDS", _SHORT)
    monkeypatch.setattr(disk, "_FILE_SYSTEM", Asker("the file system"))
    watched = watching(run, clock)
    for _ in range(3):
        watched.poll()
        clock.now += 60
    release.set()
    (said,) = health(run)
    assert "the file system has not answered for 0 s" in said and watched.stop_cause is None


def test_a_hanging_debugger_does_not_block_the_watch(
    run: RunDir, clock: Clock, monkeypatch: pytest.MonkeyPatch, gpus: FakeNvml
) -> None:
    release = threading.Event()

    def write(folder: Path, _: object) -> Path:
        release.wait()
        return folder / "stacks.txt"

    monkeypatch.setattr(watch, "write_stacks", write)
    watched = watching(run, clock)
    monkeypatch.setattr(watched._stall, "poll", lambda *_: "no event.")
    watched.poll()
    assert watched.stalled and health(run) == ["Run stalled: no event."]
    release.set()
    clock.now += 60
    wait_for(lambda: (watched._report_stacks(), len(health(run)) == 2)[1])
    assert health(run)[1] == "Stack dump: attempts/001/stacks.txt."


def test_an_empty_dump_of_a_reaped_debugger_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the supervisor, which reaps whatever ends: the exit code is lost, and reads as 0."""
    (tmp_path / "py-spy").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "py-spy").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    me = stack_dumps.ProcessId(pid=os.getpid(), start_time=1, boot_id="")
    assert stack_dumps._spy(me, stopped=False) is None


# the real supervisor


@pytest.fixture
def hung_runs(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], RunDir]:
    """Start runs whose supervisors' NVML answers a given number of calls."""
    for name, value in install(tmp_path / "nvml").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("STACKLLAMA_STALL_LOAD", "4")  # polls every 0.2 s

    def begin(calls: int) -> RunDir:
        monkeypatch.setenv(CALLS, str(calls))
        run = runs.start("until-stopped")
        wait_for(lambda: (run.path / "worker.pid").exists(), 60)
        return run

    return begin


@pytest.mark.parametrize("calls", [pytest.param(0, marks=pytest.mark.long), 30])
def test_a_stop_works_while_nvml_hangs(hung_runs: Callable[[int], RunDir], calls: int) -> None:
    run = hung_runs(calls)
    supervisor = run.read_state().supervisor
    assert supervisor is not None
    reached = Path(os.environ[REACHED])
    wait_for(lambda: reached.exists() and str(supervisor.pid) in reached.read_text().split(), 60)
    run.request("stop")
    state = wait_for_phase(run, "stopped")
    assert (state.exit_code, state.cause) == (75, "saved")
    wait_for(lambda: not run.lock_is_held())


# commands and screens


def test_commands_refuse_while_nvml_hangs(hanging: Hanging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging.hangs_in = "init"
    hangs = r"NVML has not answered for \d s: the GPU driver hangs"
    with pytest.raises(RefusedError, match=hangs):
        gpus.visible_gpus({}, _SHORT)
    assert gpus.visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == [], "nobody is asked"
    assert gpus.first_card(_SHORT) is None
    found, driver, error = nvml.find_gpus(_SHORT)
    assert found == [] and driver is None and error is not None and "NVML has not answered" in error
    with pytest.raises(RefusedError, match=hangs):
        nvml.known_gpus(_SHORT)
    home = Home(tmp_path / "home")
    monkeypatch.setattr(launcher, "visible_gpus", lambda: gpus.visible_gpus({}, _SHORT))
    recipe = build_recipe(Stage.SFT, {"model_name_or_path": "demo", "dataset_name": "demo"})
    with pytest.raises(RefusedError, match=hangs):
        launcher.launch(launcher.plan(home, recipe, "mine"))
    assert home.runs() == [] and len(hanging.threads) == 1


def test_doctor_reports_a_hanging_driver(hanging: Hanging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging.hangs_in = "init"
    monkeypatch.setattr(doctor, "NVML", nvml.NVML)
    monkeypatch.setattr(doctor, "find_gpus", lambda: nvml.find_gpus(_SHORT))
    report = doctor.examine(Home(tmp_path / "home"))
    assert any("the GPU driver hangs" in problem for problem in report.problems), report
    assert not any("no GPU" in advice for advice in report.advice)


def test_the_machine_reader_reports_a_hanging_driver_and_recovers(
    hanging: Hanging, tmp_path: Path, clock: Clock, monkeypatch: Any
) -> None:
    hanging.hangs_in = "memory"
    watched = Machine(tmp_path, clock)
    for _ in range(3):
        found = watched.read()
        assert found.gpus == [] and found.note is None and found.memory_total > 0
        assert found.error is not None and found.error.startswith("cannot read the GPUs: NVML has not answered")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices = read_devices()
    assert devices.gpus == () and devices.ram is not None and "the GPU driver hangs" in devices.error
    assert len(hanging.threads) == 1
    hanging.hangs_in = ""
    hanging.released.set()
    wait_for(lambda: bool(watched.read().gpus))
    assert watched.read().error is None
