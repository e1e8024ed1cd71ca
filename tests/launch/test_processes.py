"""Identity, marks and signals of processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from stackllama_engine.launch.processes import alive, identify, kill_run_processes, run_processes, send

from .conftest import wait_for

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_a_process_is_not_its_pid() -> None:
    me = identify(os.getpid())
    assert me is not None and alive(me)
    former = msgspec.structs.replace(me, start_time=me.start_time - 1)
    assert not alive(former)
    assert not send(former, signal.SIGKILL), "a reused pid was signalled"
    assert not alive(msgspec.structs.replace(me, boot_id="another boot"))


def test_name_with_spaces_and_parentheses(tmp_path: Path) -> None:
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


def test_gone_and_zombie() -> None:
    process = subprocess.Popen(SLEEP)
    found = identify(process.pid)
    assert found is not None and send(found, signal.SIGKILL)
    wait_for(lambda: identify(process.pid) is None)  # a zombie until it is waited for
    assert not alive(found)
    process.wait()
    assert not send(found, signal.SIGKILL)


def test_marked_processes_and_no_others(tmp_path: Path) -> None:
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
