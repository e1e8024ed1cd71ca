"""Ownership checks of a home, whose files are executed and changed with the permissions of the calling user.

A recipe that another user can replace is that user's program (``reward_funcs``), and ``launch.json`` is a command line.
So whatever executes or writes in a home calls this first: the home, its runs, the run and each file in it must belong
to the caller or to root, and nobody else may write there. Another user's home can be read; nothing is changed in it.

``STACKLLAMA_TRUST_OWNER`` (``--trust-owner``) names further owners, by name or number, and lifts both rules for what
they own: everyone such an owner lets write is trusted too.
"""

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from ..contract.errors import RefusedError, UsageError
from ..contract.run_dir import Home, RunDir

TRUST = "STACKLLAMA_TRUST_OWNER"

_ROOT = 0
_MOST_LINKS = 40  # the kernel follows no more
_EVERYBODY = "every user of this machine"


def check_home(home: Home) -> None:
    """Refuse a home that others own or can write; one that does not exist yet may be created.

    Raises:
        RefusedError: it is one; the text names the owner, the path and the way out.
        UsageError: ``STACKLLAMA_TRUST_OWNER`` names no user of this machine.
    """
    _refuse(_home_problem(home, _named()))


def check_run(run: RunDir) -> None:
    """Check a run's home, and everything in the run's directory.

    Raises:
        RefusedError, UsageError: as :func:`check_home`.
    """
    _refuse(run_problem(run))


def run_problem(run: RunDir) -> str:
    """Return why :func:`check_run` would refuse; empty where it would not.

    Raises:
        UsageError: ``STACKLLAMA_TRUST_OWNER`` names no user of this machine.
    """
    named = _named()
    return _home_problem(Home(run.path.parents[1]), named) or _first_problem([run.path, *_inside(run.path)], named)


def trust(owner: str | None) -> None:
    """Apply ``--trust-owner`` to this process and those that it starts.

    Raises:
        UsageError: there is no such user.
    """
    if owner is not None:
        os.environ[TRUST] = owner
        _named()


def _refuse(problem: str) -> None:
    if problem:
        raise RefusedError(problem)


def _home_problem(home: Home, named: frozenset[int]) -> str:
    above = (_problem(place, named, on_the_way=True) for place in dict.fromkeys(_places_above(home.given)))
    return next(filter(None, above), "") or _first_problem([home.path, home.runs_dir], named)


def _first_problem(paths: list[Path], named: frozenset[int]) -> str:
    return next(filter(None, (_problem(path, named) for path in paths)), "")


def _inside(path: Path) -> list[Path]:
    with contextlib.suppress(OSError):  # what cannot be listed cannot be executed either
        return sorted(path.iterdir())
    return []


def _places_above(path: Path) -> Iterator[Path]:
    """Yield every directory in which a part of the path, or of a link on the way, could be replaced."""
    for part in [path, *path.parents]:
        link = part
        for _ in range(_MOST_LINKS):
            yield from link.parents
            if not link.is_symlink():
                break
            link = link.parent / link.readlink()
    yield from Path(os.path.realpath(path)).parents  # `resolve` raises where links lead in a circle


def _problem(path: Path, named: frozenset[int], *, on_the_way: bool = False) -> str:
    """Return why a path is not to be trusted; for a directory on the way, only that everybody may rename its entries.

    A link counts as its target. A path that does not exist has no problem.
    """
    try:
        facts = path.stat()
    except OSError:
        return ""
    owner, mode = facts.st_uid, facts.st_mode
    if owner in named:
        return ""
    if on_the_way:
        return _writable(path, facts, _EVERYBODY) if mode & stat.S_IWOTH and not mode & stat.S_ISVTX else ""
    if owner not in (os.geteuid(), _ROOT):
        return (
            f"{path} belongs to {_user(owner)} (uid {owner}): its content would be executed or changed with your "
            f"permissions. {_way_out(owner)}"
        )
    if mode & stat.S_IWOTH:
        return _writable(path, facts, _EVERYBODY)
    if mode & stat.S_IWGRP and not _private_group(path, facts):
        return _writable(path, facts, f"group {_group(facts.st_gid)}")
    return ""


def _writable(path: Path, facts: os.stat_result, who: str) -> str:
    return (
        f"{path} (owner {_user(facts.st_uid)}, mode {stat.S_IMODE(facts.st_mode):04o}) is writable by {who}, who "
        f"could replace what is executed there with your permissions. Run `chmod go-w {path}`. Or: "
        f"{_way_out(facts.st_uid)}"
    )


def _way_out(owner: int) -> str:
    return (
        "Use another --home, or trust this owner and everyone who can write there: "
        f"--trust-owner {_user(owner)} ({TRUST})."
    )


def _private_group(path: Path, facts: os.stat_result) -> bool:
    """Return whether a group has the owner as only member (a user private group), and no access list adds more."""
    try:
        group = grp.getgrgid(facts.st_gid)
    except KeyError:
        return False
    owner = _user(facts.st_uid)
    return group.gr_name == owner and set(group.gr_mem) <= {owner} and not _has_access_list(path)


def _has_access_list(path: Path) -> bool:
    try:
        return "system.posix_acl_access" in os.listxattr(path)
    except OSError:  # a file system without any
        return False


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a user of a container, or of another machine
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _named() -> frozenset[int]:
    """Return the owners that the user trusts by name."""
    owners: set[int] = set()
    for name in os.environ.get(TRUST, "").split(","):
        name = name.strip()
        try:
            if name:
                owners.add(int(name) if name.isascii() and name.isdigit() else pwd.getpwnam(name).pw_uid)
        except (KeyError, ValueError):
            raise UsageError(f"{TRUST} (--trust-owner): no user is called {name!r}; give a name or a uid.") from None
    return frozenset(owners)
