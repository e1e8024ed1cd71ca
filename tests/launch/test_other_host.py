"""A home that several machines share, with locks local to each: no machine marks another one's run."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from stackllama_engine.contract.errors import RefusedError, UsageError
from stackllama_engine.contract.host import Host, this_host
from stackllama_engine.contract.run_dir import Launch, ProcessId, RunDir, State
from stackllama_engine.contract.run_lock import Holder
from stackllama_engine.launch import launcher, run_location
from stackllama_engine.launch.processes import identify, run_processes
from stackllama_engine.launch.reconcile import reconcile
from stackllama_engine.launch.remove import remove
from stackllama_engine.launch.run_location import elsewhere
from stackllama_engine.launch.run_requests import stop

from .conftest import Runs, wait_for_phase
from .second_host import SecondHost, needs_root

OTHER = Host(name="gpu17", boot_id="another-boot", clock=5.0)
START = """
import sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from stackllama_engine.contract.run_dir import Home
from tests.launch.conftest import Runs
run = Runs(Home(Path(sys.argv[1]))).start("until-stopped", sys.argv[2])
print("started", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_host(tmp_path: Path) -> SecondHost:
    folder = tmp_path / "other-host"
    folder.mkdir()
    return SecondHost(folder)


@pytest.fixture
def run_there(runs: Runs, other_host: SecondHost) -> Iterator[tuple[RunDir, "subprocess.Popen[str]"]]:
    """Start a run on the second host; return it and the process that holds the host."""
    reader, writer = os.pipe()
    root = str(Path(__file__).parents[2])
    host = other_host.start(sys.executable, "-c", START, str(runs.home.path), "mine", root, stdin=reader)
    os.close(reader)
    assert host.stdout is not None and host.stdout.readline() == "started\n", host.communicate()[1]
    run = runs.home.run("mine")
    wait_for_phase(run, "running")
    (run.path / "lock").unlink()  # from here, another lock file is found
    yield run, host
    os.close(writer)
    host.kill()
    host.communicate()


def power_off(host: "subprocess.Popen[str]") -> None:
    host.kill()  # and with it all that ran there
    host.wait()


# two machines


@needs_root()
def test_a_living_run_is_looked_at_and_stopped_from_another_host(runs: Runs, other_host: SecondHost) -> None:
    run = runs.start("until-stopped", "mine")
    state = wait_for_phase(run, "running")
    other_host.own_lock(run)
    code, out, err = other_host.command(runs.home, "runs", "ls", "--json")
    (listed,) = msgspec.json.decode(out)["runs"]
    assert (code, listed["state"], listed["elsewhere"]["host"]) == (0, "running", this_host().name), err
    assert f"on {this_host().name}, last sign just now" in other_host.command(runs.home, "runs", "ls")[1]
    for words in (("runs", "resume", "mine"), ("runs", "rm", "mine", "--yes")):
        code, _, err = other_host.command(runs.home, *words)
        assert code == 3 and f"alive on {this_host().name}" in err and f"--host-gone {this_host().name}" in err
    assert run.read_state() == state and len(run_processes(run.path)) == 1
    code, _, err = other_host.command(runs.home, "runs", "stop", "mine")
    assert code == 0 and f"It is on {this_host().name}" in err and "mine: stopped, exit code 75" in err
    assert run.read_state().attempt == 1 and run_processes(run.path) == []


@needs_root()
def test_a_run_of_another_host_is_taken_over_only_when_that_is_said_to_be_gone(
    run_there: "tuple[RunDir, subprocess.Popen[str]]", runs: Runs, fake_stages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, host = run_there
    state = reconcile(run)
    there = elsewhere(run, state)
    assert state.phase == "running" and there is not None and there.host == "other-host"
    with pytest.raises(RefusedError, match=r"alive on other-host.*--host-gone other-host"):
        launcher.resume(runs.home, "mine")
    power_off(host)
    monkeypatch.setattr(run_location, "SILENCE", 0.3)
    assert stop(run, wait=True).phase == "running"  # there is an end, and nothing was guessed
    with pytest.raises(UsageError, match="--host-gone gpu17: run `mine` is on other-host"):
        launcher.resume(runs.home, "mine", host_gone="gpu17")
    launcher.resume(runs.home, "mine", host_gone="other-host")
    state = wait_for_phase(run, "finished")
    assert state.attempt == 2 and state.host is not None and state.host.name == this_host().name


@needs_root()
def test_a_stop_from_here_is_served_there(run_there: "tuple[RunDir, subprocess.Popen[str]]") -> None:
    run, _ = run_there
    assert stop(run, wait=True).phase == "stopped" and run.read_state().exit_code == 75


# what is written down


def recorded(runs: Runs, **changes: object) -> RunDir:
    run = runs.create("mine")
    run.write_state(msgspec.structs.replace(run.read_state(), phase="running", attempt=1, **changes))
    return run


def launched_on(run: RunDir, host: str) -> None:
    run.write_launch(Launch(argv=[], cwd="/", host=host, created=1.0))


def test_the_same_boot_under_another_host_name_is_this_host(runs: Runs) -> None:
    """Containers of one machine: the lock is the truth."""
    run = recorded(runs, host=msgspec.structs.replace(this_host(), name="another-container"))
    assert reconcile(run).phase == "lost"


def test_the_same_host_name_after_a_reboot_is_this_host(runs: Runs) -> None:
    run = recorded(runs, host=msgspec.structs.replace(this_host(), boot_id="the boot before"))
    assert reconcile(run).phase == "lost"


@pytest.mark.parametrize("phase", ["queued", "starting", "running", "stopping"])
def test_a_run_on_another_host_is_never_marked_lost(runs: Runs, phase: str) -> None:
    run = recorded(runs, host=OTHER)
    run.write_state(msgspec.structs.replace(run.read_state(), phase=phase))
    before = (run.path / "state.json").read_bytes()
    assert reconcile(run).phase == phase
    assert (run.path / "state.json").read_bytes() == before
    with pytest.raises(RefusedError, match="alive on gpu17"):
        remove(runs.home, "mine")
    assert remove(runs.home, "mine", host_gone="gpu17") == ["mine"]


@pytest.mark.parametrize(("host", "phase"), [("gpu17", "running"), (None, "lost")])
def test_a_run_of_an_earlier_version_without_a_host(runs: Runs, host: str | None, phase: str) -> None:
    """It wrote down the boot of its supervisor and its launcher's host name."""
    run = recorded(runs, host=None, supervisor=ProcessId(boot_id="another", pid=1, start_time=1))
    launched_on(run, host or this_host().name)
    assert reconcile(run).phase == phase


def test_a_run_that_has_ended_is_resumed_anywhere(runs: Runs, fake_stages: None) -> None:
    run = recorded(runs, host=OTHER)
    run.write_state(msgspec.structs.replace(run.read_state(), phase="stopped", exit_code=75, ended=1.0))
    launcher.resume(runs.home, "mine")
    assert wait_for_phase(run, "finished").attempt == 2


def test_the_children_of_a_pipeline_go_with_its_host(runs: Runs) -> None:
    parent = recorded(runs, host=OTHER)
    state = parent.read_state()
    parent.write_state(msgspec.structs.replace(state, stage="pipeline"))
    child = runs.create("mine-sft")
    child.write_state(msgspec.structs.replace(state, attempt=1))
    child.write_launch(Launch(argv=[], cwd="/", host="gpu17", created=1.0, parents=["mine"]))
    with pytest.raises(UsageError):  # its recipe is none of a pipeline: that comes after the children were seen to
        launcher.resume(runs.home, "mine", host_gone="gpu17")
    assert child.read_state().phase == "lost" and "gpu17" in str(child.read_state().cause)


def test_a_container_without_flock_is_seen_by_what_it_wrote_down(runs: Runs, fake_stages: None) -> None:
    """Its processes are not seen from here, although the kernel is the same."""
    run = recorded(runs)
    here = identify(os.getpid())
    assert here is not None
    holder = Holder(host=msgspec.structs.replace(this_host(), name="box"), process=here, pids="pid:[1]")
    (run.path / "lock").touch()
    (run.path / "lock.d").mkdir()
    (run.path / "lock.d" / "000001").write_bytes(msgspec.json.encode(holder))
    assert reconcile(run).phase == "running"
    with pytest.raises(RefusedError, match="alive on box"):
        launcher.resume(runs.home, "mine")
    launcher.resume(runs.home, "mine", host_gone="box")
    assert wait_for_phase(run, "finished").attempt == 2


def test_elsewhere_has_no_age_where_clocks_disagree(runs: Runs) -> None:
    run = recorded(runs, host=OTHER)
    there = elsewhere(run, run.read_state())
    assert there is not None and there.last_sign is not None
    assert there.age(there.last_sign + 7) == 7 and there.age(there.last_sign - 3600) is None


def test_a_changed_clock_does_not_change_a_runs_state(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour back, or forward, while a launcher is on its way or has died."""
    run = runs.create("mine")
    for shift in (-3600, 3600):
        now = time.time
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda shift=shift, now=now: now() + shift)
            assert reconcile(run).phase == "queued"
    state = run.read_state()
    assert state.host is not None
    run.write_state(
        msgspec.structs.replace(state, host=msgspec.structs.replace(state.host, clock=state.host.clock - 11))
    )
    monkeypatch.setattr(time, "time", lambda now=time.time: now() - 3600)
    assert reconcile(run).phase == "lost"


def test_a_state_of_an_earlier_version_is_read(runs: Runs) -> None:
    run = recorded(runs)
    (run.path / "state.json").write_text('{"stage": "sft", "phase": "running", "attempt": 1, "created": 5.0}')
    assert run.read_state() == State(stage=run.read_state().stage, phase="running", attempt=1, created=5.0)
    assert reconcile(run).phase == "lost"
