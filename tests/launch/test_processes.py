"""Identity, marks and signals of processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from stackllama_engine.launch.process_marks import marks
from stackllama_engine.launch.processes import alive, identify, kill_run_processes, run_processes, send

from .conftest import wait_for

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_a_reused_pid_is_another_process() -> None:
    me = identify(os.getpid())
    assert me is not None and alive(me)
    former = msgspec.structs.replace(me, start_time=me.start_time - 1)
    assert not alive(former)
    assert not send(former, signal.SIGKILL), "a reused pid was signalled"
    assert not alive(msgspec.structs.replace(me, boot_id="another boot"))


def test_identify_parses_a_name_with_spaces_and_parentheses(tmp_path: Path) -> None:
    program = tmp_path / "a) S (b"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "600"])
    try:
        found = identify(process.pid)
        me = identify(os.getpid())
        assert found is not None and me is not None and found.start_time >= me.start_time > 0
    finally:
        process.kill()
        process.wait()


def test_identify_of_gone_and_zombie_processes_is_none() -> None:
    process = subprocess.Popen(SLEEP)
    found = identify(process.pid)
    assert found is not None and send(found, signal.SIGKILL)
    wait_for(lambda: identify(process.pid) is None)  # a zombie until it is waited for
    assert not alive(found)
    process.wait()
    assert not send(found, signal.SIGKILL)


def test_run_processes_lists_marked_processes_only(tmp_path: Path) -> None:
    run, longer = tmp_path / "run", tmp_path / "run-2"
    processes = {
        path: subprocess.Popen(SLEEP, env={**os.environ, "STACKLLAMA_RUN": str(path)}, start_new_session=True)
        for path in (run, longer)
    }
    wait_for(lambda: all(len(run_processes(path)) == 1 for path in processes))
    assert [found.pid for found in run_processes(run)] == [processes[run].pid]
    assert kill_run_processes(run) == 1
    assert processes[run].wait() == -signal.SIGKILL
    assert run_processes(run) == [] and kill_run_processes(run) == 0
    assert processes[longer].poll() is None
    assert kill_run_processes(longer) == 1
    processes[longer].wait()


def start_marked(path: Path, **more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(SLEEP, env={**os.environ, "STACKLLAMA_RUN": str(path), **more}, start_new_session=True)


def found(path: Path) -> list[int]:
    return [process.pid for process in run_processes(path)]


def test_run_processes_matches_a_mark_by_another_path(tmp_path: Path) -> None:
    """Marked as a run of before 0.2 is: by its path alone."""
    run, other = tmp_path / "real" / "run", tmp_path / "real" / "run-2"
    run.mkdir(parents=True)
    other.mkdir()
    (tmp_path / "link").symlink_to("real")
    by_link = tmp_path / "link" / "run"
    process = start_marked(by_link)
    try:
        wait_for(lambda: found(by_link) == [process.pid])
        assert found(run) == found(tmp_path / "link" / ".." / "real" / "run") == [process.pid]
        assert found(other) == []
        assert kill_run_processes(run) == 1
    finally:
        process.kill()
        process.wait()


def test_run_processes_matches_by_inode_and_by_path(tmp_path: Path) -> None:
    """Renamed, a run keeps its processes; one that was made anew has those that write into it by its path."""
    run, renamed = tmp_path / "run", tmp_path / "renamed"
    run.mkdir()
    process = start_marked(run, **marks(run))
    try:
        wait_for(lambda: found(run) == [process.pid])
        run.rename(renamed)
        assert found(renamed) == [process.pid] and found(run) == [process.pid]  # no such directory: the same text
        run.mkdir()
        assert found(renamed) == [process.pid]
        assert found(run) == [process.pid]
        run.rename(tmp_path / "third")
        assert found(tmp_path / "third") == [] and found(renamed) == [process.pid]
    finally:
        process.kill()
        process.wait()
