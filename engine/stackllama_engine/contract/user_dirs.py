"""A person's own folders: the home directory and the XDG base directories.

https://specifications.freedesktop.org/basedir-spec/latest/ has relative paths ignored. A container's user often has no
entry in the password database and no ``HOME``; the runs' home then stands in for it (`settle_home`).
"""

import os
from pathlib import Path

from .errors import UsageError


def home_dir() -> Path:
    """The home directory.

    Raises:
        UsageError: none is known.
    """
    try:
        return Path.home()
    except RuntimeError:
        raise UsageError(
            f"no home directory is known: HOME is not set, and user {os.getuid()} is not in the password database. "
            "Set STACKLLAMA_HOME (or HOME) to a directory that can be written."
        ) from None


def user_dir(variable: str, default: str) -> Path:
    """An XDG base directory, e.g. ``user_dir("XDG_DATA_HOME", ".local/share")``.

    Raises:
        UsageError: as `home_dir`, where the variable does not say.
    """
    given = os.environ.get(variable, "")
    return Path(given) if given.startswith("/") else home_dir() / default


def expanded(path: str | Path) -> Path:
    """The path with ``~`` and ``~user`` replaced.

    Raises:
        UsageError: nobody knows whose home that is.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise UsageError(f"{path}: the home directory `{user}` is not known; write the path out.") from None


def settle_home(runs_home: Path | None) -> None:
    """Where no home directory is known, let the runs' home be ``HOME``, here and for what is started from here.

    Args:
        runs_home: as given on the command line; None: what ``STACKLLAMA_HOME`` says.
    """
    try:
        Path.home()
    except RuntimeError:
        given = str(runs_home or os.environ.get("STACKLLAMA_HOME", ""))
        if given and not given.startswith("~"):
            os.environ["HOME"] = str(Path(given).absolute())
