"""Marking a directory as being worked on, so that what a crash left can be told from what is being written.

The mark is a ``flock`` on the directory itself: it ends with the process, however that ends.
"""

import contextlib
import fcntl
import os
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def working_on(folder: Path) -> Generator[None]:
    """Hold the mark. Where the file system has no locks the work is done without it.

    Raises:
        BlockingIOError: somebody else works on it.
        OSError: it is no directory that can be opened.
    """
    descriptor = _open(folder)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def left_alone(folder: Path) -> Generator[bool]:
    """Whether nobody works on it, and then nobody begins to while this is held.

    Where that cannot be known, the file system having no locks, the answer is no.

    Raises:
        OSError: it is no directory that can be opened.
    """
    descriptor = _open(folder)
    try:
        try:
            alone = _lock(descriptor)
        except BlockingIOError:
            alone = False
        yield alone
    finally:
        os.close(descriptor)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


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
