"""A child process of the engine that answers with one JSON document; its libraries must not come into this process."""

import os
import subprocess
import sys
from typing import Any

import msgspec

from stackllama_engine.contract.child_environment import source_path
from stackllama_engine.contract.errors import ExitCode, StackllamaError, UsageError
from stackllama_engine.contract.threads import thread_environment, threads_per_process

_TIMEOUT = 180.0  # seconds for a hub that does not answer


def document_of(
    module: str, words: list[str], source: str, request: bytes = b"", timeout: float = _TIMEOUT
) -> dict[str, Any]:
    """Run a module and return its document.

    Args:
        module: of the engine.
        words: its arguments.
        source: what it reads, for errors.
        request: written to its stdin.
        timeout: seconds until it is given up.

    Raises:
        UsageError: it says so with its exit code.
        StackllamaError: any other error, with its last line on stderr; or no answer in time.
    """
    argv = [sys.executable, "-P", "-m", module, *words]
    threads = thread_environment(threads_per_process())
    environment = {**os.environ, **source_path(os.environ.get("PYTHONPATH", "")), **threads}
    try:
        done = subprocess.run(argv, env=environment, input=request, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise StackllamaError(
            f"{source}: no answer within {timeout:.0f} s. Try again, or preview a file on this machine with fewer rows."
        ) from None
    if done.returncode == ExitCode.DONE:
        return msgspec.json.decode(done.stdout, type=dict[str, Any])
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    message = lines[-1] if lines else f"{source} cannot be read (exit code {done.returncode})."
    raise UsageError(message) if done.returncode == ExitCode.USAGE else StackllamaError(message)
