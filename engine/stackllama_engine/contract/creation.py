"""Creating a run directory whole: written in a hidden one, made durable, renamed. What is cut short leaves no run.

A hidden directory's name begins with :data:`NEW` and it is marked as being worked on (:mod:`.working`); what a crash
left is listed and removed by :mod:`..launch.leftovers`.
"""

import contextlib
import errno
import os
import secrets
import shutil
from pathlib import Path

from .atomic_files import fsync_directory, make_private_dir, write_whole
from .errors import RefusedError
from .run_dir import kind_of
from .working import working_on

NEW = ".new-"
DELETED = ".deleted-"
FOLDERS = ("control", "attempts", "checkpoints")
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


def create_whole(runs_dir: Path, run_id: str, recipe: bytes, state: bytes) -> Path:
    """A new run directory; of several callers with one id exactly one succeeds.

    Raises:
        RefusedError: the name is taken, or the home cannot be written; nothing is left.
    """
    path = runs_dir / run_id
    check_free(path)
    while True:
        with contextlib.suppress(_Vanished):
            return _create(runs_dir, path, recipe, state)


class _Vanished(Exception):
    """Somebody took the hidden directory for a leftover in the moment between its making and its marking."""


def _create(runs_dir: Path, path: Path, recipe: bytes, state: bytes) -> Path:
    hidden = runs_dir / f"{NEW}{path.name}-{secrets.token_hex(4)}"
    try:
        make_private_dir(hidden)
    except OSError as error:
        raise RefusedError(f"{runs_dir} cannot be written: {error.strerror}. Choose another --home.") from None
    made = hidden
    try:
        with working_on(hidden):
            _fill(hidden, recipe, state)
            # Where a directory with anything in it has the name, this fails, and every run has something in it.
            os.rename(hidden, path)  # noqa: PTH104 - Path.rename is the same
            made = path
            fsync_directory(runs_dir)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and runs_dir.is_dir() and not hidden.exists() and made == hidden:
            raise _Vanished from None
        shutil.rmtree(made, ignore_errors=True)
        if error.errno in _TAKEN and os.path.lexists(path):
            check_free(path)
        where = str(error.filename or path).replace(str(hidden), str(path))
        raise RefusedError(f"{where} cannot be written: {error.strerror}. Choose another --home.") from None
    return path


def _fill(folder: Path, recipe: bytes, state: bytes) -> None:
    for name in FOLDERS:
        make_private_dir(folder / name)
    write_whole(folder / "recipe.yaml", recipe)
    write_whole(folder / "state.json", state)


def check_free(path: Path) -> None:
    """Whether a run may get this directory.

    Raises:
        RefusedError: there is one already.
    """
    if not os.path.lexists(path):
        return
    if kind_of(path) == "leftover":
        raise RefusedError(
            f"`{path.name}` is what is left of a launch that was cut short; `stackllama-console runs rm {path.name}` "
            "frees the name, or choose another --name."
        )
    raise RefusedError(f"A run `{path.name}` exists already; choose another --name.")
