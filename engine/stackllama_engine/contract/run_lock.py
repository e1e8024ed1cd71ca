"""Lock of a run: its holder is alive, and no other process starts, closes or deletes the run meanwhile.

It is an ``flock`` on the file ``lock``, which the kernel releases however the holder ends. Some file systems have none
(some FUSE, Lustre without ``-o flock``). There the holder records itself in a file of ``lock.d``, which it creates
(``O_EXCL``) and keeps open::

    lock.d/000007     {"host": …, "process": …, "pids": …}

A record is valid while exactly that process still has the file open (``/proc/PID/fd``), so that closing the descriptor
releases the lock, as with flock. A record of another machine is valid until the user says that the machine is gone:
only its files are visible from here.

A contender takes a number above all others, writes its record, and only then checks: it withdraws if there is a higher
one, any other valid one, or its own is missing. Two contenders cannot both stay: the lower one checked before the
higher one's file existed, so its own record was complete when the higher one checked. The holder removes stale records.
"""

import contextlib
import errno
import fcntl
import os
import random
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from .atomic_files import make_private_dir, open_private
from .host import Host, this_host
from .process_id import ProcessId, identify
from .run_files import UNDECODABLE, decode_file
from .streams import above_standard

LOCK = "lock"
HOLDERS = "lock.d"

BY_FILE = (
    f"The runs' file system has no flock: the holder of this run is recorded in its {HOLDERS}. Another machine cannot "
    "tell whether a process of this one is alive."
)
"""Notice for a run whose lock is held without flock."""

_NO_FLOCK = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK})
_NO_ANSWER = frozenset({errno.EIO, errno.ETIMEDOUT})
_MOST_BYTES = 64 << 10  # of a record
_PATIENCE = 2.0  # seconds; a reader that checks whether the lock is held holds it for microseconds
_PROC = Path("/proc")


class Holder(Struct, frozen=True, kw_only=True):
    """Holder of a lock without flock.

    Attributes:
        host: its machine.
        process: its process on that machine.
        pids: namespace of its pid, as ``/proc/self/ns/pid`` names it.
    """

    host: Host
    process: ProcessId
    pids: str

    def holds(self, record: Path) -> bool:
        """Return whether the process has the record open, as far as can be seen from here."""
        return identify(self.process.pid) == self.process and _has_open(self.process.pid, record)

    @property
    def is_out_of_sight(self) -> bool:
        """Whether its process is invisible from here: on another machine, or in another container of this one."""
        return self.host.is_elsewhere or (self.host.is_this_kernel and self.pids != _pid_namespace())


def try_flock(descriptor: int, operation: int) -> bool | None:
    """Try ``flock`` without waiting; return whether it was acquired, or None if this file system has none.

    Raises:
        OSError: it failed for another reason.
    """
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        return None
    return True


def acquire(run: Path, *, holder_gone: bool = False) -> int:
    """Take the lock of a run directory; it is held until the descriptor, and every inherited copy, is closed.

    Without flock this process holds it, and a process that inherits the lock calls :func:`take_over`.

    Args:
        run: the directory.
        holder_gone: a holder that is invisible from here is known to be gone.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the lock cannot be opened.
    """
    # Above 2: the child inherits it by number, beside its own standard streams.
    descriptor = above_standard(open_private(run / LOCK, os.O_RDWR | os.O_CREAT))
    try:
        deadline = time.monotonic() + _PATIENCE
        while not (locked := try_flock(descriptor, fcntl.LOCK_EX)):
            if locked is None:
                record = _acquire_by_file(run, holder_gone=holder_gone)
                os.close(descriptor)
                return record
            if time.monotonic() > deadline:
                raise _held(run / LOCK)
            time.sleep(0.02)
        if _valid_records(run, holder_gone=holder_gone):
            raise _held(run / HOLDERS)
        _remove(_records(run))
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def release(descriptor: int) -> None:
    """Release the lock: close it, and without flock also remove the record, which other machines would trust."""
    record = (_PROC / "self/fd" / str(descriptor)).readlink()  # its directory may have another name by now
    with contextlib.suppress(OSError):  # on this machine closing alone makes the record invalid
        if record.parent.name == HOLDERS and _same(os.fstat(descriptor), record):
            record.unlink()
    os.close(descriptor)


def hosts_out_of_sight(run: Path) -> list[str]:
    """List the machines and containers that may hold the lock but are invisible from here."""
    holders = [_read(path) for path in _records(run)]
    return [holder.host.name for holder in holders if holder is not None and holder.is_out_of_sight]


def is_held(run: Path) -> bool:
    """Return whether a process holds the lock of a run directory.

    Raises:
        OSError: it cannot be read.
    """
    try:
        descriptor = os.open(run / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        return try_flock(descriptor, fcntl.LOCK_SH) is False or is_by_file(run)
    finally:
        os.close(descriptor)


def is_by_file(run: Path) -> bool:
    """Return whether the lock is held through a record, without flock."""
    return bool(_valid_records(run))


def take_over(run: Path, descriptor: int) -> int:
    """Take over an inherited lock; call it while the former holder still holds it.

    Returns:
        The descriptor to keep open; no child inherits it.

    Raises:
        OSError: there is no flock, and the record of this process cannot be written.
    """
    if _same(os.fstat(descriptor), run / LOCK):
        os.set_inheritable(descriptor, False)
        return descriptor
    _, record = _write_record(run)  # above all others; the former holder's stays valid until it is complete
    os.close(descriptor)
    return record


def _acquire_by_file(run: Path, *, holder_gone: bool) -> int:
    with contextlib.suppress(FileExistsError):
        make_private_dir(run / HOLDERS)
    deadline = time.monotonic() + _PATIENCE
    while not _valid_records(run, holder_gone=holder_gone):
        mine, descriptor = _write_record(run)
        others = [path for path in _records(run) if path != mine]
        is_highest = all(_number(path) < _number(mine) for path in others)
        if is_highest and _valid_records(run, holder_gone=holder_gone) == [mine]:
            _remove(others)
            return descriptor
        mine.unlink(missing_ok=True)
        os.close(descriptor)
        if time.monotonic() > deadline:
            break
        time.sleep(random.uniform(0.0, 0.02))  # noqa: S311 - so that two contenders do not collide again
    raise _held(run / HOLDERS)


def _write_record(run: Path) -> tuple[Path, int]:
    """Write a record of this process above all others; return it with the descriptor that keeps it open."""
    process = identify(os.getpid())
    assert process is not None
    holder = Holder(host=this_host(), process=process, pids=_pid_namespace())
    number = max(map(_number, _records(run)), default=0)
    while True:
        number += 1
        path = run / HOLDERS / f"{number:06d}"
        with contextlib.suppress(FileExistsError):
            descriptor = above_standard(open_private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            break
    try:
        os.write(descriptor, msgspec.json.encode(holder))
        os.fsync(descriptor)
    except BaseException:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        raise
    return path, descriptor


def _valid_records(run: Path, *, holder_gone: bool = False) -> list[Path]:
    """List the records whose holders are alive, as far as can be told from here."""
    valid: list[Path] = []
    for path in _records(run):
        holder = _read(path)
        if holder is not None and (not holder_gone if holder.is_out_of_sight else holder.holds(path)):
            valid.append(path)
    return valid


def _read(record: Path) -> Holder | None:
    try:
        return decode_file(record, Holder, _MOST_BYTES)
    except UNDECODABLE:  # not complete: see the module
        return None
    except OSError as error:  # released, or replaced by something else, which no process holds
        if error.errno in _NO_ANSWER:  # the record may still be valid
            raise
        return None


def _remove(stale: Iterable[Path]) -> None:
    for path in stale:
        with contextlib.suppress(OSError):  # a directory, which is never a valid record
            path.unlink()


def _records(run: Path) -> list[Path]:
    try:
        return [path for path in (run / HOLDERS).iterdir() if path.name.isdecimal()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _number(record: Path) -> int:
    return int(record.name)


def _held(path: Path) -> BlockingIOError:
    return BlockingIOError(errno.EWOULDBLOCK, "held by another process", str(path))


def _has_open(pid: int, record: Path) -> bool:
    try:
        status = record.stat()
        return any(_same(status, entry) for entry in (_PROC / str(pid) / "fd").iterdir())
    except OSError:
        return False


def _same(status: os.stat_result, path: Path) -> bool:
    try:
        return os.path.samestat(status, path.stat())
    except OSError:
        return False


def _pid_namespace() -> str:
    return str((_PROC / "self/ns/pid").readlink())
