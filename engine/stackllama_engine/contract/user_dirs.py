"""The user's own directories: home and the XDG base directories.

https://specifications.freedesktop.org/basedir-spec/latest/ ignores relative paths. A container's user often has no
entry in the password database and no ``HOME``; the home of runs is then used instead (`settle_home`).
"""

import os
from pathlib import Path

from .errors import UsageError


def home_dir() -> Path:
    """Return the home directory.

    Raises:
        UsageError: none is known.
    """
    try:
        return Path.home()
    except RuntimeError:
        raise UsageError(
            f"no home directory is known: HOME is not set, and user {os.getuid()} is not in the password database. "
            "Set STACKLLAMA_HOME (or HOME) to a writable directory."
        ) from None


def user_dir(variable: str, default: str) -> Path:
    """Return an XDG base directory, e.g. ``user_dir("XDG_DATA_HOME", ".local/share")``.

    Raises:
        UsageError: as `home_dir`, if the variable is not set.
    """
    given = os.environ.get(variable, "")
    return Path(given) if given.startswith("/") else home_dir() / default


def expanded(path: str | Path) -> Path:
    """Return the path with ``~`` and ``~user`` replaced.

    Raises:
        UsageError: that home directory is not known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise UsageError(f"{path}: the home directory `{user}` is not known; give the full path.") from None


def settle_home(runs_home: Path | None) -> None:
    """Set ``HOME`` to the home of runs if no home directory is known, here and for processes started from here.

    Args:
        runs_home: as given on the command line; None: the value of ``STACKLLAMA_HOME``.
    """
    try:
        Path.home()
    except RuntimeError:
        given = str(runs_home or os.environ.get("STACKLLAMA_HOME", ""))
        if given and not given.startswith("~"):
            os.environ["HOME"] = str(Path(given).absolute())
