"""Record of an unexpected crash: one line for the person, a trace without locals in a file."""

import contextlib
import os
import tempfile
import time
import traceback
from pathlib import Path

from stackllama_engine.contract.errors import StackllamaError
from stackllama_engine.contract.redact import redactor

from .paths import state_dir


def redact(text: str) -> str:
    """Replace the values of secrets in a text by their names."""
    return redactor().text(text)


def write_crash(error: BaseException) -> Path | None:
    """Write the trace to ``crash-*.txt`` (0600), values of secrets in the environment blanked out.

    In the state directory, or, where that is not known or cannot be written, in that for temporary files.

    Returns:
        The file, or None where none could be written.
    """
    trace = redact("".join(traceback.format_exception(error)))  # capture_locals is off
    for find_folder in (state_dir, lambda: Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError, StackllamaError):  # full, read-only, or no home: the next one
            return _write(find_folder(), trace)
    return None


def _write(folder: Path, trace: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    prefix = time.strftime("crash-%Y%m%d-%H%M%S-")
    descriptor, path = tempfile.mkstemp(prefix=prefix, suffix=".txt", dir=folder)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(trace)
    return Path(path)
