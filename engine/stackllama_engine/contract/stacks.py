"""Stack dumps of a worker on request: the worker registers a signal handler, and its supervisor sends the signal.

The signal's default action is to be ignored, so that it does not end a process that has not registered yet;
torchelastic, accelerate and Slurm do not use it.
"""

import faulthandler
import os
import signal
from pathlib import Path

from .atomic_files import open_private

STACKS_FILE = "stacks.txt"
"""File in the attempt's directory; every rank and the supervisor append to it."""
STACK_SIGNAL = signal.SIGURG


def offer_stacks(folder: Path) -> None:
    """Register the signal that writes the Python stacks of all threads into the attempt's directory.

    Raises:
        OSError: the file cannot be opened.
    """
    descriptor = open_private(folder / STACKS_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    # faulthandler keeps the file object and writes from the signal handler, without Python
    faulthandler.register(STACK_SIGNAL, file=os.fdopen(descriptor, "ab", buffering=0), all_threads=True)
