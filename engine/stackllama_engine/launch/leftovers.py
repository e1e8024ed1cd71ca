"""Leftovers of interrupted launches and deletions in ``runs/``, removed unless a process still works on them."""

import os
import secrets
import shutil
from pathlib import Path

from msgspec import Struct

from ..contract.creation import DELETED, NEW
from ..contract.errors import RefusedError
from ..contract.run_dir import Home, kind_of
from ..contract.working import left_alone, working_on
from .ownership import check_home


class Leftover(Struct, frozen=True, kw_only=True):
    """An entry of ``runs/`` that is no run.

    Attributes:
        path: where it is.
        of: its origin: ``launch`` or ``deletion``.
        busy: whether a process still works on it, so that it is none yet.
    """

    path: Path
    of: str
    busy: bool


def leftovers(home: Home) -> list[Leftover]:
    """List the leftovers of a home, by name.

    Raises:
        OSError: the directory of runs cannot be read.
    """
    if not home.runs_dir.is_dir():
        return []
    entries = [(path, _origin(path)) for path in sorted(home.runs_dir.iterdir())]
    return [Leftover(path=path, of=of, busy=_is_busy(path)) for path, of in entries if of is not None]


def remove_leftovers(home: Home) -> tuple[list[str], list[str]]:
    """Remove all leftovers that no process works on.

    Returns:
        names of the removed ones, and of those that a process still works on.

    Raises:
        RefusedError: one cannot be removed, or the home is another user's (:mod:`.ownership`).
    """
    check_home(home)
    removed: list[str] = []
    busy: list[str] = []
    for each in leftovers(home):
        (busy if each.busy else removed).append(each.path.name)
        if not each.busy:
            remove_leftover(each.path)
    return removed, busy


def remove_leftover(path: Path) -> None:
    """Remove one. A leftover under a run's name is renamed first, which frees the name at once.

    Raises:
        RefusedError: a process still works on it, or it cannot be removed.
    """
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        with left_alone(path) as alone:
            if not alone:
                raise RefusedError(f"{path} may still be in use by another process; try again later.")
            delete_whole(path)
    except FileNotFoundError:  # another process removed it
        return
    except OSError as error:
        raise RefusedError(f"{path} could not be removed: {error.strerror}.") from None


def delete_whole(path: Path) -> None:
    """Delete a directory under another, hidden name: it disappears at once, and its name is free.

    Raises:
        OSError: it cannot be deleted; what is left of it is a leftover.
    """
    if not path.name.startswith((NEW, DELETED)):
        path = path.rename(path.with_name(f"{DELETED}{path.name}-{secrets.token_hex(4)}"))  # a leading dot: no run id
    shutil.rmtree(path)


def delete_marked(path: Path) -> None:
    """Delete a directory as :func:`delete_whole` does, marked as being worked on meanwhile.

    Raises:
        OSError: as there.
    """
    with working_on(path):
        delete_whole(path)


def _origin(path: Path) -> str | None:
    if path.name.startswith(DELETED):
        return "deletion"
    return "launch" if path.name.startswith(NEW) or kind_of(path) == "leftover" else None


def _is_busy(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    try:
        with left_alone(path) as alone:
            return not alone
    except OSError:
        return not os.path.lexists(path)  # gone: another process removes it; not permitted: removing it reports that
