"""A file in the person's own pager, while the console is suspended."""

import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from textual.app import App, SuspendNotSupported


def open_in_pager(app: App[Any], path: Path) -> str:
    """Show a file in ``$PAGER``, by default ``less`` or ``more``, and return when that has ended.

    Returns:
        Why it could not be shown, in one sentence; empty when it was.
    """
    named = os.environ.get("PAGER", "").strip()
    try:
        words = shlex.split(named) or [next(filter(shutil.which, ("less", "more")), "")]
    except ValueError as error:
        return f"PAGER={named}: {error}; set it to a command, as in PAGER=less"
    if not words[0] or shutil.which(words[0]) is None:
        missing = f"PAGER={named}: no such command" if named else "no pager is installed"
        return f"{missing}; set PAGER to one, as in PAGER=less"
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    os.close(descriptor)
    try:
        with app.suspend():
            code, signalled = _run([*words, str(path)])
    except SuspendNotSupported:
        return "this terminal cannot be lent to another program"
    except OSError as error:
        return f"PAGER={named}: {error.strerror}"
    if signalled:
        os.kill(os.getpid(), signalled)
    return f"{words[0]} ended with exit code {code}" if code > 0 else ""


def _run(argv: list[str]) -> tuple[int, int]:
    """Run a program on the terminal; return its exit code, and the signal that was meant to end the console.

    Ctrl-C is the program's own; what ends the console ends it first.
    """
    signalled = 0
    process: subprocess.Popen[bytes] | None = None

    def end(number: int, _frame: object) -> None:
        nonlocal signalled
        signalled = number
        if process is not None:
            process.terminate()

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        for number in handlers:
            signal.signal(number, end if number != signal.SIGINT else lambda _number, _frame: None)
        process = subprocess.Popen(argv, stdout=2)  # the console draws on stderr
        return process.wait(), signalled
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
