"""The environment of processes that this package starts, whichever part of it starts them."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import stackllama_engine

RENDEZVOUS_DIR = "STACKLLAMA_MEETING"
"""Environment variable of ranks: the directory in which those of an attempt find each other."""

_FOREIGN = re.compile(
    # Of a surrounding torchrun, accelerate, MPI or run of ours: each would tell the worker that it is somebody else.
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|(PMI|OMPI_COMM_WORLD|MV2_COMM_WORLD)_\w+"
    r"|TORCHELASTIC_\w+|TORCH_ELASTIC_SHUTDOWN_TIMEOUT|PET_\w+|ACCELERATE_\w+|FSDP_\w+|FORK_LAUNCHED"
    r"|TORCH_FORCE_(NO_)?WEIGHTS_ONLY_LOAD"
    r"|TORCH_DISABLE_SHARE_RDZV_TCP_STORE|STACKLLAMA_(RUN|RUN_INODE|ATTEMPT|WORLD_SIZE|CANARY|MEETING)"
)


def inherited_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment that supervisor and worker inherit: all of it, but for marks of distributed programs."""
    return {name: value for name, value in environment.items() if not _FOREIGN.fullmatch(name)}


def source_path(python_path: str) -> dict[str, str]:
    """Return ``PYTHONPATH`` with this package's own root first, in absolute paths: a run has its own directory."""
    root = Path(stackllama_engine.__file__).resolve().parents[1]
    own = [] if root.name in ("site-packages", "dist-packages") else [str(root)]
    given = [str(Path(part).absolute()) for part in python_path.split(os.pathsep) if part]
    parts = list(dict.fromkeys([*own, *given]))
    return {"PYTHONPATH": os.pathsep.join(parts)} if parts else {}
