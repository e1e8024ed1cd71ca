"""``accelerate launch``, which for one process ends with the code that this process ended with.

accelerate itself ends with 1 whatever became of it, so that a SIGKILL of the kernel's out-of-memory killer looks like
an exception of Python's. Here the code is the worker's, and 128 + the signal where one killed it, as in a shell.
Several processes are torchrun's, which prints their exit codes.
"""

import subprocess
import sys

from accelerate.commands.accelerate_cli import main


def run() -> None:
    """Launch; accelerate's own errors are raised as they are.

    Raises:
        SystemExit: with the worker's exit code.
    """
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode if error.returncode >= 0 else 128 - error.returncode)


if __name__ == "__main__":
    run()
