"""Errors that a person can meet, and the exit code each one ends with.

::

    StackllamaError          1  failed
    ├── UsageError           2  wrong arguments: unknown run, bad name, missing file
    │   ├── RecipeError      2  a wrong key or value in a recipe; names file, key, value and the way out
    │   ├── DamagedError     2  a file of a run directory that is not what was written there
    │   └── DataError        2  a data source that cannot be read as asked
    ├── RefusedError         3  refused before launch: name taken, run alive, nothing to resume
    │   └── FunctionChangedError 3  code that a recipe names is not what it was at launch; may be confirmed
    └── StageError           1  a stage ran and cannot go on; the message is the cause

A message says what is wrong, where, and the way out, in one or two sentences.
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
    """Root of the tree. ``exit_code`` is what the command ends with."""

    exit_code: int = ExitCode.FAILED


class UsageError(StackllamaError):
    """The person asked for something that cannot be understood or does not exist."""

    exit_code = ExitCode.USAGE


class RecipeError(UsageError):
    """A recipe has a wrong key or value. Nothing was created."""


class DamagedError(UsageError):
    """A file of a run directory cannot be read as what it is: bytes were changed, or something else is in its place."""


class DataError(UsageError):
    """A data source is missing, unreadable, or has other columns than the stage needs."""


class RefusedError(StackllamaError):
    """Understood, but refused before anything was launched."""

    exit_code = ExitCode.REFUSED


class UnconfirmedError(RefusedError):
    """Something is no longer what it was at launch, and nobody has said yet that this is meant.

    Args:
        key: the keyword of :func:`..launch.launcher.resume` that says so.
        flag: the same on the command line.
        reasons: what is different, a sentence each.
        question: to ask a person.
        way_out: what to do where nobody can be asked.
    """

    def __init__(self, key: str, flag: str, reasons: list[str], question: str, way_out: str) -> None:
        self.key = key
        self.flag = flag
        self.reasons = reasons
        self.question = question
        super().__init__(" ".join([*reasons, way_out]))


class StageError(StackllamaError):
    """A stage ran and cannot go on."""
