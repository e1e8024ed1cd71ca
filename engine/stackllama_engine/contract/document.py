"""Answer of a process that another one asked: one JSON document on stdout, or an error as one line on stderr."""

import contextlib
import sys
from collections.abc import Callable

import msgspec

from .errors import StackllamaError


def print_document(make: Callable[[], object]) -> int:
    """Make the document and print it; return the exit code."""
    try:
        # Libraries print progress to stdout, which must carry the document alone.
        with contextlib.redirect_stdout(sys.stderr):
            document = make()
    except StackllamaError as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return int(error.exit_code)
    sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")
    sys.stdout.buffer.flush()
    return 0
