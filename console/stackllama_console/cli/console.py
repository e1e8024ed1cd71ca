"""``stackllama-console`` alone, and ``open``: the Textual console. Textual is imported here and nowhere above."""

import argparse
import gc
import os
import sys
from pathlib import Path

from stackllama_engine.contract.errors import ExitCode, StackllamaError, UsageError
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.user_dirs import expanded

from ..sanitise import one_line
from .output import PROGRAM


def console(arguments: argparse.Namespace) -> int:
    """Open the console on the list of runs."""
    return show_console(arguments, None)


def open_target(arguments: argparse.Namespace) -> int:
    """``open TARGET``: the console on one run, or on another trainer's directory."""
    return show_console(arguments, find_target(Home(arguments.home), arguments.target))


def find_target(home: Home, target: str) -> str | Path:
    """A run id of this home as text, or a directory.

    Raises:
        UsageError: it is neither.
    """
    from .runs import find

    path = expanded(target)
    if path.is_dir() and ("/" in target or not (home.runs_dir / target).is_dir()):
        if path.resolve().parent == home.runs_dir.resolve():  # a run's own directory, written out
            return find(home, path.resolve().name).id
        from ..feeds.foreign import open_foreign

        open_foreign(path)  # says now, on the command line, when there is nothing to watch
        return path.resolve()
    if path.is_file():
        raise UsageError(f"{target} is a file; open takes a run id, or the directory that a trainer writes to.")
    if "/" in target:
        raise UsageError(f"{target}: no such directory.")
    return find(home, target).id


def show_console(arguments: argparse.Namespace, target: str | Path | None) -> int:
    """Show it until the person leaves.

    Raises:
        UsageError: no terminal to draw on.
        StackllamaError: the console crashed; the trace is in a file.
    """
    if not can_show():
        raise UsageError(
            f"the console needs a terminal (stdin and stderr); without one use `{PROGRAM} runs ls`, "
            f"`{PROGRAM} runs watch` or `{PROGRAM} --help`."
        )
    if not (getattr(arguments, "ascii", False) or _speaks_utf8()):
        arguments.ascii = True
    gc.disable()  # until the first screen is painted: a seventh of the way there would be looking for garbage
    from ..tui.app import Options, run_console

    options = Options(
        home=Home(arguments.home), target=target, ascii=arguments.ascii, mouse=getattr(arguments, "mouse", False)
    )
    code, crash = run_console(options)
    if crash is not None:
        from ..crash import redact, write_crash

        file = write_crash(crash)
        where = f"the trace is in {file}" if file else "the trace could not be written"
        raise StackllamaError(
            f"the console stopped: {type(crash).__name__}: {one_line(redact(str(crash)))[:160]}; {where}. Runs go on."
        )
    return code if code else ExitCode.DONE


def can_show() -> bool:
    """Whether there is a terminal: Textual reads stdin and draws on stderr."""
    return sys.__stdin__ is not None and sys.__stderr__ is not None and _is_terminal()


def _is_terminal() -> bool:
    return os.isatty(0) and os.isatty(2) and os.environ.get("TERM", "") not in ("", "dumb")


def _speaks_utf8() -> bool:
    encoding = (getattr(sys.__stderr__, "encoding", "") or "").lower()
    return encoding.replace("-", "") == "utf8"
