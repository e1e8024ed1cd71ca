"""Marking a directory as being worked on, so that what a crash left can be told from what is being written.

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
    """Hold the mark. Where the file system has no locks the work is done without it.

    Raises:
        BlockingIOError: somebody else works on it; one who only looks holds it for microseconds.
        OSError: it is no directory that can be opened, or it was removed or replaced meanwhile.
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
    """Whether nobody works on it, and then nobody begins to while this is held; None: it cannot be known.

    The last is the answer of a file system without locks.

    Raises:
        OSError: it is no directory that can be opened, or it was removed or replaced meanwhile.
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
    """Whether the directory that was opened still has its name: somebody may have removed it meanwhile.

    Raises:
        FileNotFoundError: it has not.
    """
    mine, now = os.fstat(descriptor), os.lstat(folder)
    if (mine.st_dev, mine.st_ino) != (now.st_dev, now.st_ino):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))


def _lock(descriptor: int) -> bool:
    """Whether the file system could say so.

    Raises:
        BlockingIOError: it is somebody else's.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
