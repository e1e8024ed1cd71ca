"""The sbatch command of a run: the first submission, and again to resume it after it ended.

Options are arguments of ``sbatch``, one each; the script holds no directive, and of the recipe nothing at all.
"""

import contextlib
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from ..contract.atomic_files import write_whole
from ..contract.errors import UsageError
from ..contract.run_dir import RunDir
from .slurm_queue import is_inside, job_of

SCRIPT = "slurm.sh"
_SIGNAL = "B:USR1@300"
_OPTION = re.compile(r"[a-z][a-z0-9-]*")
_OURS = frozenset({"job-name", "output", "error", "open-mode", "requeue", "no-requeue", "parsable", "wrap", "array"})
_MORE = "[the --sbatch-options it was first submitted with]"


def options_of(words: Iterable[str]) -> dict[str, str]:
    """Parse ``key=value`` words as options of sbatch.

    Raises:
        UsageError: a word that is no option, that holds control characters, or that this module sets itself.
    """
    options = {"signal": _SIGNAL}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not _OPTION.fullmatch(key) or not value or not value.isprintable():
            raise UsageError(
                f"--sbatch-option {word!r}: give key=value as sbatch spells its options, as in time=8:00:00."
            )
        if key in _OURS:
            raise UsageError(f"--sbatch-option {key}=…: this is set for the run; leave it out.")
        options[key] = value
    if not options["signal"].startswith("B:USR1@"):
        raise UsageError(f"--sbatch-option signal={options['signal']}: it must be B:USR1@SECONDS; change the seconds.")
    return options


def sbatch_argv(path: Path, options: dict[str, str]) -> list[str]:
    """Return the sbatch command for a run of this path.

    Raises:
        UsageError: the path holds what a script or a file pattern of Slurm would read as something else.
    """
    if not str(path).isprintable() or "%" in str(path) or "\\" in str(path):
        raise UsageError(f"{str(path)!r} cannot be a run's path under Slurm: no control characters, `%` or backslash.")
    extra = [f"--{key}={value}" for key, value in options.items()]
    return [
        "sbatch",
        "--parsable",
        f"--job-name={path.name}",
        f"--output={path}/slurm-%j.txt",
        "--open-mode=append",
        "--requeue",
        *extra,
        str(path / SCRIPT),
    ]


def script(path: Path) -> str:
    """Return the script of the job of a run of this path."""
    argv = [sys.executable, "-P", "-m", "stackllama_engine.launch.slurm", str(path)]
    return f"#!/bin/sh\nexec {shlex.join(argv)}\n"


def resubmission(run: RunDir) -> str | None:
    """Return the shell command that resumes an ended Slurm run; None for other runs, and inside its own job.

    Its script is renewed where it leads to another directory or interpreter.

    Raises:
        UsageError: ``slurm.json`` cannot be read.
    """
    job = job_of(run)
    if job is None or is_inside(job):
        return None
    with contextlib.suppress(OSError):  # a home that may only be read here: the script is very likely right
        file, wanted = run.path / SCRIPT, script(run.path).encode()
        if not file.is_file() or file.read_bytes() != wanted:
            write_whole(file, wanted)
    argv = sbatch_argv(run.path, job.options or {"signal": _SIGNAL})
    words = shlex.join(argv)
    return words if job.options is not None else f"{words}  # and {_MORE}"
