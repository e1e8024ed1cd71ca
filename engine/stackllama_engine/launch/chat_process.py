"""The command of the process that chats with a run."""

import os
import sys

from ..contract.child_environment import inherited_environment, source_path
from ..contract.run_dir import RunDir


def chat_command(run: RunDir, checkpoint: str | None = None, *, cpu: bool = False) -> tuple[list[str], dict[str, str]]:
    """Return the generator's argv and environment. It is no process of the run: stopping the run leaves it alone."""
    argv = [sys.executable, "-P", "-m", "stackllama_engine.train.chat", str(run.path)]
    argv += [f"--checkpoint={checkpoint}"] if checkpoint is not None else []
    argv += ["--cpu"] if cpu else []
    inherited = inherited_environment()
    return argv, {**inherited, **source_path(os.environ.get("PYTHONPATH", "")), "PYTHONUNBUFFERED": "1"}
