"""The supervisor's own log, its standard error."""

import contextlib
import os
import time
from pathlib import Path

SUPERVISOR_LOG = "supervisor.txt"
"""Supervisor's own stderr; in the attempt's folder."""


def log_line(text: str) -> None:
    """Write a line to this process's standard error, if the disk has room for it."""
    with contextlib.suppress(OSError):
        os.write(2, f"{time.strftime('%F %T')} {text}\n".encode())


def drop_empty_log(folder: Path) -> None:
    """Remove the log of an attempt in which nothing went wrong."""
    log = folder / SUPERVISOR_LOG
    if log.is_file() and log.stat().st_size == 0:
        log.unlink()
