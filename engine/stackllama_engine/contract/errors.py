"""Errors that a user can meet, and their exit codes.

::

    StackllamaError          1  failed
    ├── UsageError           2  wrong arguments: unknown run, bad name, missing file
    │   ├── RecipeError      2  wrong key or value in a recipe; names file, key, value and the fix
    │   ├── DamagedError     2  file of a run directory that is not what was written there
    │   └── DataError        2  data source that cannot be read as requested
    ├── RefusedError         3  refused before launch: name taken, run alive, nothing to resume
    │   ├── UnconfirmedError 3  something changed since launch, and the user has not confirmed it yet
    │   └── FindingsError    3  the result would mean nothing, unless the user allows it by name
    └── StageError           1  a running stage failed; the message is the cause

A message says what is wrong, where, and how to fix it, in one or two sentences.
"""

import enum


class ExitCode(enum.IntEnum):
    """Exit codes of every command and of every stage (a signal N ends with 128 + N)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    STOPPED = 75
    """Stopped after saving; resumable (``EX_TEMPFAIL``)."""


class StackllamaError(Exception):
    """Root of the tree; ``exit_code`` is that of the command."""

    exit_code: int = ExitCode.FAILED


class UsageError(StackllamaError):
    """A request that cannot be understood, or names something that does not exist."""

    exit_code = ExitCode.USAGE


class RecipeError(UsageError):
    """A wrong key or value in a recipe. Nothing was created."""


class DamagedError(UsageError):
    """A file of a run directory that cannot be decoded: it was changed, or something else is in its place."""


class DataError(UsageError):
    """A data source that is missing, unreadable, or without the columns that the stage needs."""


class RefusedError(StackllamaError):
    """A valid request that was refused before anything was launched."""

    exit_code = ExitCode.REFUSED


class UnconfirmedError(RefusedError):
    """Something changed since launch, and the user has not confirmed it yet.

    Args:
        key: keyword of :func:`..launch.launcher.resume` that confirms it.
        flag: the same on the command line.
        reasons: what is different, one sentence each.
        question: question for the user.
        way_out: what to do where the user cannot be asked.
    """

    def __init__(self, key: str, flag: str, reasons: list[str], question: str, way_out: str) -> None:
        self.key = key
        self.flag = flag
        self.reasons = reasons
        self.question = question
        super().__init__(" ".join([*reasons, way_out]))


class FindingsError(RefusedError):
    """A run that could be launched but whose result would mean nothing; the user can allow that.

    Args:
        names: the findings to allow.
        findings: what they are.
    """

    def __init__(self, names: tuple[str, ...], findings: str) -> None:
        self.names = names
        self.findings = findings
        flags = " ".join(f"--allow {name}" for name in names)
        super().__init__(f"{findings} To launch all the same, add `{flags}`.")


class StageError(StackllamaError):
    """A failure of a running stage."""


def how_to_install(extra: str) -> str:
    """Return the command that adds an extra's packages; the package itself is on no index, so it runs in a clone."""
    return f"`pip install '.[{extra}]'` in a clone of the repository"
