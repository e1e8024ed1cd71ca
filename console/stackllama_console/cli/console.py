"""``stackllama-console`` alone, and ``open``: the Textual console. Textual is imported here and nowhere above."""

import argparse
import gc
import os
import re
import sys
from pathlib import Path

from stackllama_engine.contract.errors import ExitCode, StackllamaError, UsageError
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.user_dirs import expanded

from ..early_exit import leave_at_once
from ..sanitise import one_line
from .output import PROGRAM

_MOST_CELLS = 1000  # in a row or column, where the terminal does not say


def console(arguments: argparse.Namespace) -> int:
    """Open the console on the list of runs."""
    return show_console(arguments, None)


def open_target(arguments: argparse.Namespace) -> int:
    """Run ``open TARGET``: open the console on one run, or on another trainer's directory."""
    return show_console(arguments, find_target(Home(arguments.home), arguments.target))


def find_target(home: Home, target: str) -> str | Path:
    """Return a run id of this home as text, or a directory.

    Raises:
        UsageError: it is neither.
    """
    from .runs import find

    path = expanded(target)
    if path.is_dir() and ("/" in target or not (home.runs_dir / target).is_dir()):
        if path.resolve().parent == home.runs_dir.resolve():  # a run's own directory, written out
            return find(home, path.resolve().name).id
        from ..readers.foreign import open_foreign
        from ..readers.foreign_runs import runs_in

        runs = runs_in(path)  # raises now, on the command line, when there is nothing to watch
        if len(runs) == 1:
            open_foreign(runs[0].path)
        return path.resolve()
    if path.is_file():
        raise UsageError(f"{target} is a file; open takes a run id, or the directory that a trainer writes to.")
    if "/" in target:
        raise UsageError(f"{target}: no such directory.")
    return find(home, target).id


def show_console(arguments: argparse.Namespace, target: str | Path | None) -> int:
    """Show the console until the person quits.

    Raises:
        UsageError: no terminal to draw on.
        StackllamaError: the console crashed; the trace is in a file.
    """
    if missing := _missing_terminal():
        raise UsageError(
            f"{missing}; without one use `{PROGRAM} runs ls`, `{PROGRAM} runs watch` or `{PROGRAM} --help`."
        )
    leave_at_once()  # until there is a screen to leave
    if not (getattr(arguments, "ascii", False) or _speaks_utf8()) or _lacks_braille():
        arguments.ascii = True
    _forget_size_beyond_terminal()
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
            f"the console stopped: {type(crash).__name__}: {one_line(redact(str(crash)))[:160]}; {where}. "
            "Runs are not affected."
        )
    return code if code else ExitCode.DONE


def can_show() -> bool:
    """Return whether there is a terminal: Textual reads stdin and draws on stderr."""
    return not _missing_terminal()


def _missing_terminal() -> str:
    """Return why the console cannot be drawn here; empty where it can."""
    no_terminal = [name for name, number in (("stdin", 0), ("stderr", 2)) if not os.isatty(number)]
    if no_terminal:
        verb = "is not one" if len(no_terminal) == 1 else "are not"
        return f"the console needs a terminal, and {' and '.join(no_terminal)} {verb}"
    term = os.environ.get("TERM", "")
    if term in ("", "dumb"):
        named = f"TERM={term} cannot" if term else "TERM is not set (try TERM=xterm-256color)"
        return f"the console needs a terminal that can move its cursor: {named}"
    return ""


def _lacks_braille() -> bool:
    """Return whether the terminal's font has no braille patterns: the Linux console, hardware terminals."""
    return re.match(r"linux|vt\d|ansi|cons25|sun", os.environ.get("TERM", "")) is not None


def _forget_size_beyond_terminal() -> None:
    """Drop ``COLUMNS`` and ``LINES`` that exceed the terminal: what was drawn there could not be seen."""
    for name, real in zip(("COLUMNS", "LINES"), os.get_terminal_size(2), strict=True):
        cells = os.environ.get(name, "")
        if cells.isdecimal() and int(cells) > (real or _MOST_CELLS):  # a terminal that does not know its size says 0
            del os.environ[name]


def _speaks_utf8() -> bool:
    encoding = (getattr(sys.__stderr__, "encoding", "") or "").lower()
    return encoding.replace("-", "") == "utf8"
