"""Stacks of a worker on demand: it registers a signal, and whoever watches it asks.

The signal is one whose default is to be ignored, so that a process which has not registered yet is not ended by it;
torchelastic, accelerate and Slurm send it to nobody.
"""

import faulthandler
import os
import signal
from pathlib import Path

from .atomic_files import open_private

STACKS_FILE = "stacks.txt"
"""In the attempt's folder; every rank and the supervisor append to it."""
STACK_SIGNAL = signal.SIGURG


def offer_stacks(folder: Path) -> None:
    """From now on the signal writes the Python stacks of all threads of this process into the attempt's folder.

    Raises:
        OSError: the file cannot be opened.
    """
    descriptor = open_private(folder / STACKS_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    # a file object of its own, which faulthandler keeps: it writes from the handler, without Python
    faulthandler.register(STACK_SIGNAL, file=os.fdopen(descriptor, "ab", buffering=0), all_threads=True)
