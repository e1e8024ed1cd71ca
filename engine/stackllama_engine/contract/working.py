"""Marks for directories that are being written, to tell them from what a crash left.

The mark is a ``flock`` on the directory itself: it ends with the process, however that ends.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Generator
from pathlib import Path

_PATIENCE = 2.0  # seconds


@contextlib.contextmanager
def working_on(folder: Path) -> Generator[None]:
    """Hold the mark; on a file system without locks the work is done without it.

    Raises:
        BlockingIOError: another process works on it; one that only checks holds it for microseconds.
        OSError: it is not a directory that can be opened, or it was removed or replaced meanwhile.
    """
    descriptor = _open(folder)
    try:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                _lock(descriptor)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        _check_same(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def left_alone(folder: Path) -> Generator[bool | None]:
    """Yield whether no other process works on it, and keep others from starting while this is held.

    None where that cannot be known: on a file system without locks.

    Raises:
        OSError: it is not a directory that can be opened, or it was removed or replaced meanwhile.
    """
    descriptor = _open(folder)
    try:
        try:
            alone = True if _lock(descriptor) else None
        except BlockingIOError:
            alone = False
        _check_same(descriptor, folder)
        yield alone
    finally:
        os.close(descriptor)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _check_same(descriptor: int, folder: Path) -> None:
    """Check that the opened directory still has its name: another process may have removed it meanwhile.

    Raises:
        FileNotFoundError: it has not.
    """
    mine, now = os.fstat(descriptor), os.lstat(folder)
    if (mine.st_dev, mine.st_ino) != (now.st_dev, now.st_ino):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))


def _lock(descriptor: int) -> bool:
    """Take the lock and return whether the file system has locks.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
