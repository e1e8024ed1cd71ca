"""Daemonization: a process detached from its parent and terminal, which adopts orphaned descendants."""

import ctypes
import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def detach(settle: Callable[[], T]) -> T:
    """Fork twice and call setsid: the process that is left has no parent and no terminal.

    Args:
        settle: called before the first process ends, with status 0, and its caller continues.

    Returns:
        the result of ``settle``, in the process that is left.
    """
    os.umask(0o077)
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        os.read(reader, 1)  # until the last copy of the other end is closed, by whatever end
        os._exit(0)
    os.close(reader)
    os.setsid()
    if os.fork():
        os._exit(0)
    try:
        return settle()
    finally:
        os.close(writer)


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose own parent ends, so that they can be reaped."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")
