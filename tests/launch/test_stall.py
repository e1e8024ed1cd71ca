"""Stall detection by a clock that is advanced by hand; real ranks are in `test_ranks`."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stackllama_engine.contract.events import Event
from stackllama_engine.contract.run_dir import ProcessId
from stackllama_engine.contract.stacks import STACK_SIGNAL
from stackllama_engine.launch import stack_dumps
from stackllama_engine.launch.activity import Activity, Idle
from stackllama_engine.launch.processes import catches, identify, send, usage
from stackllama_engine.launch.stack_dumps import drop_empty_stacks, write_stacks
from stackllama_engine.launch.stall import StallLimits, StallWatch

from .conftest import Clock, wait_for

Start = Callable[..., ProcessId]
IDLE = Idle(rank="1", seconds=1e6, stopped=[])


def stepping(clock: Clock, seconds: float, count: int = 5) -> StallWatch:
    """Return the watch of a run with a given step time."""
    watch = StallWatch(StallLimits(), clock)
    watch.event(Event(seq=0, time=clock.now, kind="phase", phase="train"))
    for step in range(1, count + 1):
        watch.event(Event(seq=step, time=clock.now, kind="progress", step=step))
        clock.now += seconds
    clock.now -= seconds
    return watch


@pytest.mark.parametrize(("step", "limit"), [(1.0, 120.0), (30.0, 300.0), (600.0, 1800.0)])
def test_stall_limit_follows_the_median_step_between_floor_and_ceiling(clock: Clock, step: float, limit: float) -> None:
    watch = stepping(clock, step)
    assert watch.limit == limit
    clock.now += limit - 1
    assert watch.poll([IDLE]) is None
    clock.now += 1
    why = watch.poll([IDLE])
    assert why is not None and f"no event for {limit:.0f} s (limit {limit:.0f} s, the median step takes" in why
    assert "rank 1" in why
    watch.event(Event(seq=9, time=clock.now, kind="metrics", step=6))
    assert watch.poll([IDLE]) is None


def test_stall_limit_before_the_first_step_is_the_load_limit(clock: Clock) -> None:
    watch = StallWatch(StallLimits(load=900.0), clock)
    watch.event(Event(seq=0, time=clock.now, kind="phase", phase="load"))
    clock.now += 899
    assert watch.poll([IDLE]) is None
    clock.now += 1
    assert "before the first step" in (watch.poll([IDLE]) or "")
    clock.now += 1000
    assert watch.poll([IDLE], ranks=2) is None, "rank 0 prepares the data"


def test_busy_ranks_may_be_silent_for_twice_the_ceiling(clock: Clock) -> None:
    """An evaluation; and ranks that spin in a collective that no rank completes."""
    watch = stepping(clock, 1.0)
    clock.now += 3599
    assert watch.poll([]) is None and watch.poll([Idle(rank="0", seconds=60.0, stopped=[])]) is None
    clock.now += 1
    assert "although ranks are busy" in (watch.poll([]) or "")


def test_a_rank_may_wait_for_a_busy_one_until_the_ceiling(clock: Clock) -> None:
    """Rank 0 saves, or prepares data, and the others have nothing to do but wait for it."""
    watch = stepping(clock, 1.0)
    clock.now += 1799
    assert watch.poll([IDLE], ranks=2) is None
    stopped = Idle(rank="0", seconds=1e6, stopped=[7])
    assert "rank 0 is stopped by a signal (pid 7)" in (watch.poll([IDLE, stopped], ranks=3) or "")
    assert watch.poll([IDLE, Idle(rank="0", seconds=1e6, stopped=[])], ranks=2) is not None, "nobody works"
    clock.now += 1
    assert "while other ranks are busy), and rank 1 has used no" in (watch.poll([IDLE], ranks=2) or "")


def test_a_pause_is_no_stall(clock: Clock) -> None:
    watch = stepping(clock, 1.0)
    watch.event(Event(seq=8, time=clock.now, kind="phase", phase="paused"))
    clock.now += 100_000
    assert watch.poll([IDLE]) is None
    watch.event(Event(seq=9, time=clock.now, kind="phase", phase="train"))
    watch.event(Event(seq=10, time=clock.now, kind="progress", step=6))
    assert watch.limit == 120.0, "the pause counted as a step"
    clock.now += 120
    assert watch.poll([IDLE]) is not None


def test_stall_limits_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert StallLimits.of_environment() == StallLimits()
    for name, value in (("FACTOR", "3"), ("FLOOR", "1.5"), ("CEILING", "60"), ("LOAD", "9")):
        monkeypatch.setenv(f"STACKLLAMA_STALL_{name}", value)
    assert StallLimits.of_environment() == StallLimits(factor=3.0, floor=1.5, ceiling=60.0, load=9.0)


# activity

BUSY = "print('up', flush=True)\nwhile True: pass"
ASLEEP = "import time; print('up', flush=True); time.sleep(600)"
READING = "print('up', flush=True)\nimport time\nwhile True: open('/dev/zero', 'rb').read(1 << 20); time.sleep(0.01)"


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def begin(code: str, rank: str | None = None) -> ProcessId:
        environment = {name: value for name, value in os.environ.items() if name != "RANK"}
        environment |= {} if rank is None else {"RANK": rank}
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline()
        found = identify(process.pid)
        assert found is not None
        return found

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_activity_finds_an_idle_rank_among_busy_ones(clock: Clock, start: Start) -> None:
    launcher, busy, asleep = start(ASLEEP), start(BUSY, "0"), start(ASLEEP, "1")
    every = [launcher, busy, asleep]
    activity = Activity(clock)
    assert activity.poll(every) == [], "a new rank is busy"
    before = usage(busy)
    assert before is not None
    wait_for(lambda: (now := usage(busy)) is not None and now.ticks > before.ticks + 20)
    clock.now += 2
    assert activity.poll(every) == [Idle(rank="1", seconds=2.0, stopped=[])], "the launcher is no rank"
    assert activity.ranks == 2
    clock.now += 0.5
    assert [one.rank for one in activity.poll(every, {asleep.pid: 90, busy.pid: 1})] == [], "its GPU is busy"


def test_activity_counts_reading_as_busy(clock: Clock, start: Start) -> None:
    reader = start(READING)
    activity = Activity(clock)
    activity.poll([reader])
    before = usage(reader)
    assert before is not None
    wait_for(lambda: (now := usage(reader)) is not None and now.bytes > before.bytes + (8 << 20))
    clock.now += 1000  # long enough that its CPU time is negligible
    assert activity.poll([reader]) == []


def test_activity_counts_a_stopped_rank_as_idle(clock: Clock, start: Start) -> None:
    busy = start(BUSY)
    activity = Activity(clock)
    activity.poll([busy])
    send(busy, signal.SIGSTOP)
    wait_for(lambda: (now := usage(busy)) is not None and now.stopped)
    clock.now += 3
    (idle,) = activity.poll([busy])
    assert idle == Idle(rank=None, seconds=3.0, stopped=[busy.pid])
    assert str(idle) == f"the worker is stopped by a signal (pid {busy.pid})"


# stacks

OFFERING = """
import sys, time
from pathlib import Path
from stackllama_engine.contract.stacks import offer_stacks

def where_it_hangs():
    print("up", flush=True)
    time.sleep(600)

offer_stacks(Path({folder!r}))
where_it_hangs()
"""


def test_write_stacks_dumps_processes_with_a_handler_and_names_the_others(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack_dumps.shutil, "which", lambda _: None)  # py-spy would need no offer
    offering, silent = start(OFFERING.format(folder=str(tmp_path)), "0"), start(ASLEEP, "1")
    assert catches(offering, STACK_SIGNAL) and not catches(silent, STACK_SIGNAL)
    drop_empty_stacks(tmp_path)  # no dump was requested: an empty file would only puzzle
    assert not (tmp_path / "stacks.txt").exists()
    stopped = start(OFFERING.format(folder=str(tmp_path)), "2")
    send(stopped, signal.SIGSTOP)
    wait_for(lambda: (now := usage(stopped)) is not None and now.stopped)
    second = start(OFFERING.format(folder=str(tmp_path)), "3")
    path = write_stacks(tmp_path, [silent, stopped, second])
    text = path.read_text()
    said = {part[part.index("rank") :][:6]: part.partition("\n")[2] for part in text.split("=== ")[1:]}
    assert "where_it_hangs" in said["rank 3"] and path.stat().st_mode & 0o777 == 0o600
    assert "does not handle the stack-dump signal" in said["rank 1"]
    assert "stopped by a signal (state T)" in said["rank 2"] and "where_it_hangs" not in said["rank 2"]
    assert all(identify(process.pid) == process for process in (silent, stopped, second)), "asking ended somebody"
    drop_empty_stacks(tmp_path)
    assert path.exists()


def test_write_stacks_prefers_py_spy(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = tmp_path / "py-spy"
    spy.write_text('#!/bin/sh\necho "spied with $*"\n')
    spy.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    asleep, stopped = start(ASLEEP), start(ASLEEP)
    send(stopped, signal.SIGSTOP)
    wait_for(lambda: (now := usage(stopped)) is not None and now.stopped)
    text = write_stacks(tmp_path, [asleep, stopped]).read_text()
    assert f"spied with dump --pid {asleep.pid}\n" in text
    assert f"spied with dump --pid {stopped.pid} --nonblocking\n" in text
    spy.write_text("#!/bin/sh\nexit 1\n")  # not permitted to look
    assert "does not handle the stack-dump signal" in write_stacks(tmp_path, [asleep]).read_text()
