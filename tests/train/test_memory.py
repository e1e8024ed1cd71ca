"""Memory by phase: on a GPU each phase's own peaks, everywhere the resident set; a steady run repeats nothing."""

from pathlib import Path

import pytest
import torch

from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.history import read_history
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import memory
from stackllama_engine.train.__main__ import _cause
from stackllama_engine.train.reporting import Reporter

MIB = 1 << 20


class Device:
    """A GPU's allocator: what is held, and the most that was since the peaks were begun anew."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held = self.peak = 0
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
        monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: self.peak * MIB)
        monkeypatch.setattr("torch.cuda.max_memory_reserved", lambda: 2 * self.peak * MIB)
        monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", self._reset)
        monkeypatch.setattr(memory, "_rss", lambda: 100.0)

    def take(self, held: int, peak: int) -> None:
        self.held, self.peak = held, max(self.peak, peak)

    def _reset(self) -> None:
        self.peak = self.held


def reporting(tmp_path: Path) -> tuple[RunDir, Reporter]:
    run = Home(tmp_path).create(Stage.PPO, "")
    run.attempt_dir(1).mkdir()
    return run, Reporter(run, 1, is_main=True)


def memories(run: RunDir) -> list[tuple[str | None, float, float]]:
    """(phase, allocated of the attempt, allocated of the phase) of each record, in MiB."""
    found: list[tuple[str | None, float, float]] = []
    for event in EventReader(run.attempt_dir(1) / "events.jsonl").read():
        if event.kind == "memory":
            allocated = event.metrics["allocated"]
            assert allocated is not None
            found.append((event.phase, allocated / MIB, event.data["phase"]["allocated"] / MIB))
    return found


def test_each_phase_has_its_own_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, reporter = reporting(tmp_path)
    device = Device(monkeypatch)
    for step in range(3):
        reporter.phase("rollout")
        device.take(10, 30)
        reporter.phase("update")
        device.take(10, 20 + 10 * (step == 2))
    reporter.end(0)
    assert memories(run) == [
        ("start", 0, 0),
        ("rollout", 30, 30),
        ("update", 30, 20),
        ("update", 30, 30),
    ]
    history = read_history(run.events_files())
    assert history.memory["allocated"] == 30 * MIB and history.memory["reserved"] == 60 * MIB
    assert {name: found.get("allocated", 0) / MIB for name, found in history.memory_by_phase.items()} == {
        "start": 0,
        "rollout": 30,
        "update": 30,
    }


def test_asked_for_in_the_middle_of_a_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, reporter = reporting(tmp_path)
    device = Device(monkeypatch)
    reporter.phase("load")
    device.take(5, 50)
    reporter.phase("train")
    device.take(5, 7)
    reporter.memory()
    assert memories(run)[-1] == ("train", 50, 7)


def test_on_a_cpu_the_resident_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, reporter = reporting(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for rss, phase in ((300.0, "load"), (200.0, "train")):
        monkeypatch.setattr(memory, "_rss", lambda rss=rss: rss)
        reporter.phase(phase)
    history = read_history(run.events_files())
    assert history.memory_by_phase == {"start": {"rss": 300.0}, "load": {"rss": 200.0}}
    assert (history.memory["rss"] or 0) > 300, "the peak is the process's own"


def test_the_resident_set_is_read() -> None:
    assert 10 * MIB < memory.measured()["rss"] < 64 << 30


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to …"),
            "Out of GPU memory in phase update. ",
        ),
        (RuntimeError("CUDA error: out of memory"), "Out of GPU memory in phase update. "),
        (MemoryError(), "Out of memory in phase update. "),
        (OSError(12, "Cannot allocate memory"), "Out of memory in phase update. "),
        (ValueError("memory"), "ValueError in phase update: memory"),
    ],
)
def test_a_failed_allocation_is_named_as_what_it_is(error: Exception, expected: str) -> None:
    assert _cause(error, "update").startswith(expected)


def test_what_torch_says_when_main_memory_is_full_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert _cause(caught.value, "train").startswith("Out of memory in phase train. ")
