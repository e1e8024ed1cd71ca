"""What is left of an unexpected crash: one line for the person, a trace without locals in a file."""

import os
import tempfile
import time
import traceback
from pathlib import Path

from stackllama_engine.contract.redact import redactor

from .paths import state_dir


def redact(text: str) -> str:
    """The text with the values of secrets replaced by their names."""
    return redactor().text(text)


def write_crash(error: BaseException) -> Path | None:
    """Write the trace to ``crash-*.txt`` (0600), values of secrets in the environment blanked out.

    Returns:
        The file, or None where none could be written.
    """
    trace = redact("".join(traceback.format_exception(error)))  # capture_locals is off
    try:
        state_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
        prefix = time.strftime("crash-%Y%m%d-%H%M%S-")
        descriptor, path = tempfile.mkstemp(prefix=prefix, suffix=".txt", dir=state_dir())
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(trace)
    except OSError:
        return None
    return Path(path)
