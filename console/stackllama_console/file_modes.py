"""Modes of what a command makes: its owner's alone, except what a person asked for in a place of their own."""

import os
from collections.abc import Generator
from contextlib import contextmanager

_PRIVATE = 0o077
_users: int | None = None


def make_private() -> None:
    """Make whatever this process makes from here on its owner's alone."""
    global _users
    before = os.umask(_PRIVATE)
    _users = before if _users is None else _users


@contextmanager
def as_the_user_has_it() -> Generator[None]:
    """Apply the umask that the process was started with."""
    before = os.umask(_PRIVATE if _users is None else _users)
    try:
        yield
    finally:
        os.umask(before)
