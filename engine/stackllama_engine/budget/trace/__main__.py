"""Command ``python -m stackllama_engine.budget.trace``: a request on standard input, the trace on standard output.

Exit code 2 and one line on standard error: this recipe or model cannot be traced.
"""

import sys

import msgspec

from ...contract.errors import StackllamaError
from ...contract.streams import open_standard_streams
from .request import Request


def main() -> int:
    """Trace one request; return the exit code."""
    try:
        request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
        from .measure import measure

        answer = measure(request)
    except (ValueError, ImportError, StackllamaError, NotImplementedError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    return 0


if __name__ == "__main__":
    open_standard_streams()
    sys.exit(main())
