"""Entry of ``stackllama-console``: arguments in, exit code out, and no traceback for a person's mistake."""

import sys

from .early_exit import interruptible, leave_at_once

if __name__ == "__main__" or sys.argv[0].endswith("/stackllama-console"):  # not where a test imports it
    leave_at_once()

import contextlib
import errno
import io
import os
import signal
from collections.abc import Sequence

from stackllama_engine.contract.errors import ExitCode, RecipeError, StackllamaError
from stackllama_engine.contract.streams import open_standard_streams
from stackllama_engine.contract.user_dirs import settle_home
from stackllama_engine.contract.user_files import UnsuitableFileError
from stackllama_engine.launch.ownership import trust

from .cli.output import PROGRAM, say
from .cli.parser import handler, parse
from .file_modes import make_private
from .sanitise import one_line

_ENVIRONMENT = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENXIO,
    }
)
"""Errors of the system that a person can fix: permissions, full disks, a link or pipe in the place of a file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code of ``contract/errors.py``; 130 after Ctrl-C, 141 when the reader of stdout went away.
    """
    open_standard_streams()  # first: what is opened next may not be number 0, 1 or 2
    make_private()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows `?`
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except StackllamaError as error:
        say("\n  ".join(_lines(error)))
        return int(error.exit_code)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        _silence_stdout()
        return 128 + signal.SIGPIPE
    except OSError as error:
        return _system_error(error)
    except Exception as error:  # noqa: BLE001 — the outermost guard
        return _crashed(error)


def _run(argv: Sequence[str]) -> int:
    try:
        arguments = parse(argv)
        if arguments.handler is None:
            arguments.parser.print_help(sys.stderr)
            return ExitCode.USAGE
        settle_home(getattr(arguments, "home", None))
        trust(getattr(arguments, "trust_owner", None))
        command = handler(arguments)
        with interruptible():
            code = command(arguments)
    except SystemExit as error:  # argparse after --help and --version
        code = error.code if isinstance(error.code, int) else ExitCode.DONE
    sys.stdout.flush()
    return int(code)


def _lines(error: StackllamaError) -> list[str]:
    """Return a message's lines: one, unless a recipe has several mistakes."""
    text = f"{PROGRAM}: {error}"
    return [one_line(line) for line in text.splitlines()] if isinstance(error, RecipeError) else [one_line(text)]


def _system_error(error: OSError) -> int:
    """Report what the system refused, where a person can fix that; else report a crash."""
    if error.errno == errno.EIO and not (sys.stdin and sys.stdin.isatty()):  # the terminal has been closed
        return 128 + signal.SIGHUP
    if error.errno == errno.ENOENT and not _has_directory():
        say(f"{PROGRAM}: the current directory has been deleted; change to another one, or use absolute paths.")
        return ExitCode.FAILED
    where = f"{error.filename}: " if error.filename else ""
    if isinstance(error, UnsuitableFileError):
        say(f"{PROGRAM}: {one_line(f'{where}cannot be read: {error}')}.")
        return ExitCode.USAGE
    if error.errno not in _ENVIRONMENT:
        return _crashed(error)
    say(f"{PROGRAM}: {one_line(f'{where}{error.strerror}')}")
    return ExitCode.FAILED


def _crashed(error: Exception) -> int:
    from .crash import redact, write_crash

    file = write_crash(error)
    where = f"the trace is in {file}" if file else "and the trace could not be written"
    with contextlib.suppress(OSError):
        say(f"{PROGRAM}: unexpected {type(error).__name__}: {one_line(redact(str(error)))[:200]}; {where}")
    return ExitCode.FAILED


def _has_directory() -> bool:
    """Return whether the current directory still exists; relative paths mean nothing without it."""
    try:
        return bool(os.getcwd())  # noqa: PTH109 - Path.cwd is the same
    except OSError:
        return False


def _silence_stdout() -> None:
    """Keep the interpreter's last flush from reporting the same pipe."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
