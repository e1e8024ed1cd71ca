"""Runs of other machines on the command line."""

import errno
import os
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from stackllama_engine.contract.events import EventWriter
from stackllama_engine.contract.host import Host
from stackllama_engine.contract.run_dir import Home, Launch, ProcessId, RunDir
from stackllama_engine.contract.run_lock import Holder
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import run_location


@pytest.fixture
def far(make_run: Callable[..., RunDir]) -> RunDir:
    """Make a run on another machine, silent for five minutes; its lock is free as seen from here."""
    run = make_run(Stage.SFT, "far", phase="running", host=Host(name="gpu17\x1b[2J", boot_id="another-boot"))
    (run.path / "lock").unlink()
    set_sign(run, -310)
    return run


def set_sign(run: RunDir, seconds: float) -> None:
    then = time.time() + seconds
    os.utime(run.path / "state.json", (then, then))


def test_ls_and_show_name_the_other_host(
    far: RunDir, run_main: Callable[..., Any], assert_clean: Callable[[str], None]
) -> None:
    before = (far.path / "state.json").read_bytes()
    listed = run_main("runs", "ls")
    shown = run_main("runs", "show", "far")
    for result in (listed, shown):
        assert result.code == 0 and "running" in result.out and ", last sign 5 minutes ago" in result.out
        assert_clean(result.out)
    (fact,) = run_main("runs", "ls", "--json").json()["runs"]
    assert fact["elsewhere"] == run_main("runs", "show", "--json").json()["elsewhere"] | fact["elsewhere"]
    assert fact["elsewhere"]["host"] == "gpu17\x1b[2J" and 310 <= fact["elsewhere"]["last_sign_age"] < 600
    assert (far.path / "state.json").read_bytes() == before


def test_ls_has_no_age_where_clocks_disagree(far: RunDir, run_main: Callable[..., Any]) -> None:
    set_sign(far, 3600)
    assert "last sign just now" in run_main("runs", "ls").out
    assert run_main("runs", "show", "far", "--json").json()["elsewhere"]["last_sign_age"] is None


def test_run_on_this_host_has_no_elsewhere(make_run: Callable[..., RunDir], run_main: Callable[..., Any]) -> None:
    make_run(Stage.SFT, "near", phase="running")
    make_run(Stage.SFT, "over", host=Host(name="gpu17", boot_id="another-boot"))
    assert [row["elsewhere"] for row in run_main("runs", "ls", "--json").json()["runs"]] == [None, None]


def test_stop_gives_up_on_a_silent_host(
    far: RunDir, run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_location, "SILENCE", 0.3)
    result = run_main("runs", "stop", "far")
    assert result.code == 1 and "still running" in result.err
    assert "has not answered" in result.err and "runs resume far --host-gone" in result.err
    assert list(far.requests()) == ["stop"] and far.read_state().phase == "running"


@pytest.fixture
def damaged(far: RunDir) -> RunDir:
    """Make the same run with a state that cannot be read."""
    far.write_launch(Launch(argv=[], cwd="/", host="gpu17", created=1.0))
    (far.path / "state.json").write_bytes(b"\xff")
    return far


@pytest.mark.parametrize("lock", ["seen nowhere", "written down"])
def test_rm_keeps_a_damaged_run_that_may_be_alive_elsewhere(
    damaged: RunDir, run_main: Callable[..., Any], lock: str
) -> None:
    if lock == "written down":
        (damaged.path / "launch.json").unlink()
        write_holder(damaged)
    refused = run_main("runs", "rm", "far", "--yes")
    assert refused.code == 3 and "runs rm far --host-gone gpu17" in refused.err
    other = run_main("runs", "rm", "far", "--yes", "--host-gone", "gpu18")
    assert other.code == 2 and "is on gpu17" in other.err
    assert damaged.path.is_dir()
    assert run_main("runs", "rm", "far", "--yes", "--host-gone", "gpu17").code == 0 and not damaged.path.exists()


def test_rm_deletes_a_damaged_run_that_ended_elsewhere(damaged: RunDir, run_main: Callable[..., Any]) -> None:
    events = EventWriter(damaged.attempt_dir(1) / "events.jsonl")
    events.write("end", data={"exit_code": 0})
    events.close()
    assert run_main("runs", "rm", "far", "--yes").code == 0 and not damaged.path.exists()


@pytest.mark.parametrize("lock", ["seen nowhere", "written down"])
def test_stop_of_a_damaged_run_elsewhere_gives_up_waiting(
    damaged: RunDir, run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    if lock == "written down":
        write_holder(damaged)
    monkeypatch.setattr(run_location, "SILENCE", 0.3)
    result = run_main("runs", "stop", "far")
    assert list(damaged.requests()) == ["stop"]
    assert result.code == 1 and "It may be on gpu17" in result.err and "runs repair far" in result.err


def test_stop_of_a_damaged_run_refuses_for_this_machine_only(damaged: RunDir, run_main: Callable[..., Any]) -> None:
    (damaged.path / "launch.json").unlink()
    result = run_main("runs", "stop", "far")
    assert result.code == 3 and "nothing of far is running on this machine" in result.err


def test_stop_of_a_damaged_run_on_a_full_disk_says_what_to_do(
    damaged: RunDir, run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RunDir, "request", full)
    result = run_main("runs", "stop", "far")
    assert result.code == 3 and f"Make room under {damaged.path}" in result.err


def write_holder(run: RunDir) -> None:
    """gpu17 holds the lock, on a file system without flock."""
    there = Host(name="gpu17", boot_id="another-boot")
    process = ProcessId(boot_id="another-boot", pid=1, start_time=1)
    (run.path / "lock").touch()
    (run.path / "lock.d").mkdir()
    (run.path / "lock.d" / "000001").write_bytes(
        msgspec.json.encode(Holder(host=there, process=process, pids="pid:[1]"))
    )


def test_host_gone_must_name_the_host(far: RunDir, home: Home, run_main: Callable[..., Any]) -> None:
    far.write_state(msgspec.structs.replace(far.read_state(), host=Host(name="gpu17", boot_id="another-boot")))
    for words in (("resume", "far"), ("rm", "far", "--yes")):
        result = run_main("runs", *words)
        assert result.code == 3 and f"runs {words[0]} far --host-gone gpu17" in result.err
        result = run_main("runs", *words, "--host-gone", "gpu18")
        assert result.code == 2 and "is on gpu17" in result.err
    assert run_main("runs", "rm", "far", "--yes", "--host-gone", "gpu17").code == 0 and home.runs() == []
