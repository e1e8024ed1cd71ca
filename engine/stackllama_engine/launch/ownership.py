"""Whose a home is: what lies in it is executed and changed with the rights of whoever resumes, stops or removes a run.

A recipe that somebody else may swap is a program of his (``reward_fn``), and ``launch.json`` is a command line. So
whatever executes or writes in a home asks here first: the home, its runs, the run and each thing in it must belong to
who asks or to root, and nobody else may write there. Somebody else's home can be looked at; nothing is set right in it.

``STACKLLAMA_TRUST_OWNER`` (``--trust-owner``) names further owners, by name or number, and lifts for what they own both
rules: it also says that whoever such an owner lets write is trusted.
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
_MOST_LINKS = 40  # that the kernel follows
_EVERYBODY = "every user of this machine"


def check_home(home: Home) -> None:
    """Let nothing be started or changed in a home that others own or write; one that does not exist yet may be made.

    Raises:
        RefusedError: it is; the text names the owner, the path and the way out.
        UsageError: ``STACKLLAMA_TRUST_OWNER`` names nobody that this machine knows.
    """
    _refuse(_home_problem(home, _named()))


def check_run(run: RunDir) -> None:
    """The same of a run's home, and of everything that lies in the run's directory.

    Raises:
        RefusedError, UsageError: as :func:`check_home`.
    """
    _refuse(run_problem(run))


def run_problem(run: RunDir) -> str:
    """What :func:`check_run` would refuse; empty where it would not.

    Raises:
        UsageError: ``STACKLLAMA_TRUST_OWNER`` names nobody.
    """
    named = _named()
    return _home_problem(Home(run.path.parents[1]), named) or _first_problem([run.path, *_inside(run.path)], named)


def trust(owner: str | None) -> None:
    """Take ``--trust-owner`` for this process and those that it starts.

    Raises:
        UsageError: nobody is called so.
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
    """Every directory in which a part of the path, or of a link on the way, could be replaced by another."""
    for part in [path, *path.parents]:
        link = part
        for _ in range(_MOST_LINKS):
            yield from link.parents
            if not link.is_symlink():
                break
            link = link.parent / link.readlink()
    yield from Path(os.path.realpath(path)).parents  # `resolve` raises where links lead in a circle


def _problem(path: Path, named: frozenset[int], *, on_the_way: bool = False) -> str:
    """Why a path is not to be trusted; of one that is only on the way, that everybody may rename what lies in it.

    A link is as good as what it leads to. A path that does not exist has no problem.
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
            f"{path} belongs to {_user(owner)} (uid {owner}): what lies there would be executed or changed with your "
            f"rights. {_way_out(owner)}"
        )
    if mode & stat.S_IWOTH:
        return _writable(path, facts, _EVERYBODY)
    if mode & stat.S_IWGRP and not _private_group(path, facts):
        return _writable(path, facts, f"group {_group(facts.st_gid)}")
    return ""


def _writable(path: Path, facts: os.stat_result, who: str) -> str:
    return (
        f"{path} (owner {_user(facts.st_uid)}, mode {stat.S_IMODE(facts.st_mode):04o}) can be written by {who}, who "
        f"could have what lies there executed with your rights. Take that away, `chmod go-w {path}`; or: "
        f"{_way_out(facts.st_uid)}"
    )


def _way_out(owner: int) -> str:
    return f"Use another --home, or trust that owner and whom he lets write: --trust-owner {_user(owner)} ({TRUST})."


def _private_group(path: Path, facts: os.stat_result) -> bool:
    """Whether a group is the owner's alone, as many systems make one for each user, and no access list says more."""
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
    except KeyError:  # of a container, or of another machine
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _named() -> frozenset[int]:
    """Owners that the person trusts by name."""
    found: set[int] = set()
    for name in os.environ.get(TRUST, "").split(","):
        name = name.strip()
        try:
            if name:
                found.add(int(name) if name.isascii() and name.isdigit() else pwd.getpwnam(name).pw_uid)
        except (KeyError, ValueError):
            raise UsageError(f"{TRUST} (--trust-owner): no user is called {name!r}; give a name or a number.") from None
    return frozenset(found)
