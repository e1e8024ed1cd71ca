"""``accelerate launch``, which for one process ends with the code that this process ended with.

accelerate itself ends with 1 whatever became of it, so that a SIGKILL of the kernel's out-of-memory killer looks like
an exception of Python's. Here the code is the worker's, and 128 + the signal where one killed it, as in a shell.
Several processes are torchrun's, which prints their exit codes.

One process is started here, with the environment that accelerate would give it (a test compares the two): importing
accelerate, and torch with it, takes as long as half of the worker's own imports, and the worker would wait for it.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..contract.user_yaml import load_yaml


def run() -> None:
    """Launch; accelerate's own errors are raised as they are.

    Raises:
        SystemExit: with the worker's exit code.
    """
    single = one_process(sys.argv[1:])
    if single is None:
        from accelerate.commands.accelerate_cli import main

        main()
        return
    command, environment = single
    code = subprocess.Popen(command, env=os.environ | environment).wait()
    if code:
        sys.exit(code if code >= 0 else 128 - code)


def one_process(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]] | None:
    """Return the worker's command and what is added to its environment; None where accelerate has to launch it.

    Args:
        arguments: of ``accelerate``, as :mod:`..launch.argv` writes them.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("command", choices=["launch"])
    for name in ("config_file", "num_machines", "num_processes", "mixed_precision", "main_process_port"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--num_cpu_threads_per_process")
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER)
    try:
        options, others = parser.parse_known_args(arguments)
    except argparse.ArgumentError:
        return None
    if others or not options.module or options.num_processes != "1" or options.num_machines != "1":
        return None
    config: dict[str, Any] = load_yaml(Path(options.config_file).read_text(encoding="utf-8"))
    on_cpu = bool(config["use_cpu"])
    environment = {
        "ACCELERATE_USE_CPU": str(on_cpu),
        "ACCELERATE_MIXED_PRECISION": options.mixed_precision,
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_DYNAMO_MODE": "default",
        "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
        "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
        "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "False",
        "OMP_NUM_THREADS": options.num_cpu_threads_per_process,
    }
    if on_cpu:
        environment |= {"KMP_AFFINITY": "granularity=fine,compact,1,0", "KMP_BLOCKTIME": "1"}
    return [sys.executable, "-m", *options.module], environment


if __name__ == "__main__":
    run()
