"""Becoming a process of its own: nobody's child, nobody's terminal, and the parent of whoever loses theirs."""

import ctypes
import os

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def detach() -> None:
    """Double fork and setsid: nobody's child, nobody's terminal. The first process ends with status 0."""
    os.umask(0o077)
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose own parent ends, so that they can be reaped."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")
