"""Atomic creation of a run directory: written in a hidden one, made durable, renamed. A crash leaves no run.

A hidden directory's name begins with :data:`NEW`, and it is marked as being worked on (:mod:`.working`). What a crash
left is listed and removed by :mod:`..launch.leftovers`.
"""

import contextlib
import errno
import os
import shutil
from pathlib import Path

from .atomic_files import fsync_directory, make_private_dir, write_whole
from .errors import RefusedError
from .working import working_on

NEW = ".new-"
DELETED = ".deleted-"
FOLDERS = ("control", "attempts", "checkpoints")
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


def create_whole(path: Path, recipe: bytes, state: bytes) -> None:
    """Create a run directory; of several callers with one path exactly one succeeds.

    Raises:
        FileExistsError: the name is taken.
        RefusedError: the home cannot be written; nothing is left.
    """
    while True:
        with contextlib.suppress(_Vanished):
            return _create(path, recipe, state)


class _Vanished(Exception):
    """Another process removed the hidden directory as a leftover between its creation and its marking."""


def _create(path: Path, recipe: bytes, state: bytes) -> None:
    runs_dir = path.parent
    hidden = runs_dir / f"{NEW}{path.name}-{os.urandom(4).hex()}"
    try:
        make_private_dir(hidden)
    except OSError as error:
        raise RefusedError(f"{runs_dir} cannot be written: {error.strerror}. Choose another --home.") from None
    current = hidden
    try:
        with working_on(hidden):
            _fill(hidden, recipe, state)
            # Where a directory with anything in it has the name, this fails, and every run has something in it.
            os.rename(hidden, path)  # noqa: PTH104 - Path.rename is the same
            current = path
            fsync_directory(runs_dir)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and runs_dir.is_dir() and not hidden.exists() and current == hidden:
            raise _Vanished from None
        shutil.rmtree(current, ignore_errors=True)
        if error.errno in _TAKEN and os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        where = str(error.filename or path).replace(str(hidden), str(path))
        raise RefusedError(f"{where} cannot be written: {error.strerror}. Choose another --home.") from None


def _fill(folder: Path, recipe: bytes, state: bytes) -> None:
    for name in FOLDERS:
        make_private_dir(folder / name)
    write_whole(folder / "recipe.yaml", recipe)
    write_whole(folder / "state.json", state)
