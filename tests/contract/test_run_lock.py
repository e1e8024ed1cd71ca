"""Lock of a run on a file system without flock: recorded, held by an open file, acquired by one only."""

import errno
import fcntl
import multiprocessing
import os
import signal
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import msgspec
import pytest

from stackllama_engine.contract import run_lock
from stackllama_engine.contract.errors import RefusedError
from stackllama_engine.contract.host import Host, this_host
from stackllama_engine.contract.run_dir import ProcessId, RunDir
from stackllama_engine.contract.run_lock import Holder

FORK = multiprocessing.get_context("fork")
OTHER = Host(name="gpu17", boot_id="another-boot", clock=5.0)


@pytest.fixture(params=[errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK], ids=lambda number: errno.errorcode[number])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """Make a run directory on a file system without flock."""

    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(run_lock, "_PATIENCE", 0.1)
    (tmp_path / "mine").mkdir()
    return RunDir(tmp_path / "mine")


def records(run: RunDir) -> list[str]:
    return sorted(path.name for path in (run.path / "lock.d").iterdir())


def leave_record(run: RunDir, host: Host, pid: int = 1, number: int = 7) -> None:
    (run.path / "lock.d").mkdir(exist_ok=True)
    (run.path / "lock").touch()
    process = ProcessId(boot_id=host.boot_id, pid=pid, start_time=1)
    holder = Holder(host=host, process=process, pids=str(Path("/proc/self/ns/pid").readlink()))
    (run.path / "lock.d" / f"{number:06d}").write_bytes(msgspec.json.encode(holder))


def test_lock_without_flock_is_held_until_its_descriptor_is_closed(run: RunDir) -> None:
    assert not run.lock_is_held()
    lock = run.acquire_lock()
    assert run.lock_is_held() and run_lock.is_by_file(run.path) and lock > 2
    with pytest.raises(RefusedError, match="is alive"):
        run.acquire_lock()
    os.close(lock)
    assert not run.lock_is_held() and records(run) == ["000001"]
    lock = run.acquire_lock()
    assert records(run) == ["000002"]
    run.release_lock(lock)
    assert not run.lock_is_held() and records(run) == []


def test_lock_without_flock_ends_with_its_holder(run: RunDir) -> None:
    held = FORK.Event()
    holder = FORK.Process(target=hold, args=(run, held))
    holder.start()
    assert held.wait(30) and run.lock_is_held()
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert not run.lock_is_held()
    run.release_lock(run.acquire_lock())


def hold(run: RunDir, held: Event) -> None:
    run.acquire_lock()
    held.set()
    time.sleep(600)


@pytest.mark.parametrize("host", [this_host(), msgspec.structs.replace(this_host(), boot_id="the boot before")])
def test_lock_of_a_dead_holder_is_acquired(run: RunDir, host: Host) -> None:
    leave_record(run, host, pid=os.getpid())  # another start time
    assert not run.lock_is_held()
    lock = run.acquire_lock()
    assert records(run) == ["000008"]
    run.release_lock(lock)


def test_lock_of_another_machine_is_held_until_holder_gone(run: RunDir) -> None:
    leave_record(run, OTHER)
    assert run.lock_is_held()
    with pytest.raises(RefusedError, match=r"alive on gpu17.*--host-gone gpu17"):
        run.acquire_lock()
    run.release_lock(run.acquire_lock(holder_gone=True))
    assert records(run) == [] and not run.lock_is_held()


def test_valid_record_blocks_a_flock(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine may have mounted the same file system without."""
    leave_record(run, OTHER)
    monkeypatch.undo()
    assert run.lock_is_held()
    with pytest.raises(RefusedError, match="alive on gpu17"):
        run.acquire_lock()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b'{"host": 1}', b"[" * 100_000])
def test_damaged_records_are_ignored(run: RunDir, content: bytes) -> None:
    leave_record(run, OTHER)
    (run.path / "lock.d" / "000007").write_bytes(content)
    (run.path / "lock.d" / "other").touch()
    assert not run.lock_is_held()
    run.release_lock(run.acquire_lock())


@pytest.mark.parametrize("what", ["folder", "full folder", "pipe", "link", "endless"])
@pytest.mark.parametrize("with_flock", [False, True], ids=["by file", "flock"])
def test_entries_other_than_records_are_ignored_without_blocking(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, what: str, with_flock: bool
) -> None:
    leave_record(run, OTHER)
    path = run.path / "lock.d" / "000007"
    path.unlink()
    if what in ("folder", "full folder"):
        path.mkdir()
        (path / "x" if what == "full folder" else path).mkdir(exist_ok=True)
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if what == "endless" else path.name)
    if with_flock:
        monkeypatch.undo()
    assert not run.lock_is_held() and run_lock.hosts_out_of_sight(run.path) == []
    lock = run.acquire_lock()
    assert run.lock_is_held()
    run.release_lock(lock)
    assert not run.lock_is_held()


def test_temporarily_unreadable_record_raises(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_record(run, OTHER)

    def no_answer(path: Path, *_: object) -> Holder:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(run_lock, "decode_file", no_answer)
    with pytest.raises(OSError, match="Input/output error"):
        run.lock_is_held()


def test_take_over_of_an_inherited_lock_leaves_no_gap(run: RunDir) -> None:
    lock = run.acquire_lock()
    os.set_inheritable(lock, True)
    settled, leave = FORK.Event(), FORK.Event()
    heir = FORK.Process(target=inherit, args=(run, lock, settled, leave))
    heir.start()
    assert settled.wait(30)
    run.release_lock(lock)
    assert run.lock_is_held() and len(records(run)) == 1
    leave.set()
    heir.join()
    assert not run.lock_is_held()


def inherit(run: RunDir, lock: int, settled: Event, leave: Event) -> None:
    lock = run_lock.take_over(run.path, lock)
    settled.set()
    leave.wait(30)
    os._exit(0)


def test_one_of_many_contenders_acquires_a_dead_holders_lock(run: RunDir) -> None:
    """Again and again, those who got it dying with it."""
    for number in range(8):
        leave_record(run, this_host(), number=100 + number)
        go, done = FORK.Event(), FORK.Event()
        got = FORK.SimpleQueue()
        contenders = [FORK.Process(target=contend, args=(run, go, done, got)) for _ in range(6)]
        for contender in contenders:
            contender.start()
        go.set()
        answers = [got.get() for _ in contenders]
        assert sum(answers) <= 1, "two of them hold it"
        assert sum(answers) == 1 or not run.lock_is_held(), "held by nobody who knows"
        done.set()
        for contender in contenders:
            contender.join()
    run.release_lock(run.acquire_lock())


def contend(run: RunDir, go: Event, done: Event, got: "multiprocessing.SimpleQueue[bool]") -> None:
    go.wait(30)
    try:
        run.acquire_lock()
    except RefusedError:
        got.put(False)
    else:
        got.put(True)
    done.wait(30)
    os._exit(0)
