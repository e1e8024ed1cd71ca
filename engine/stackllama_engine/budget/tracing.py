"""Client of a trace: a separate process runs two steps with fake tensors and replies in JSON.

Torch-free. A trace takes seconds, most of them for importing torch; no weights are loaded.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from ..contract.child_environment import source_path
from ..contract.errors import UsageError
from ..contract.recipe import TrainedRecipe
from ..contract.threads import thread_environment
from . import gguf
from .architecture import Architecture
from .model_files import read_architecture, read_config
from .trace.request import Request, Trace

TIMEOUT = 300.0
"""Seconds. A 7B model takes 5 to 15 on one core, most other models less."""
_MODULE = "stackllama_engine.budget.trace"
_MOST_LETTERS = 300


def trace(recipe: TrainedRecipe, model: Path, *, reward_model: Path | None = None, timeout: float = TIMEOUT) -> Trace:
    """Trace the allocated bytes of a recipe on one GPU, phase by phase, by running it without weights.

    Args:
        recipe: recipe of a training stage.
        model: directory or ``.gguf`` file of ``model_name_or_path``; only its configuration is read.
        reward_model: the same of a separate reward model; None: an adapter on the policy's base.
        timeout: seconds until the trace is abandoned.

    Raises:
        UsageError: the model cannot be traced, the libraries are not installed, or it took too long.
    """
    request = Request(
        stage=recipe.stage,
        recipe=msgspec.to_builtins(recipe),
        config=configuration(model),
        reward_model=configuration(reward_model) if reward_model else None,
    )
    return ask(request, timeout=timeout)


def ask(request: Request, *, timeout: float = TIMEOUT) -> Trace:
    """Run the trace's process on a request and return its reply.

    Raises:
        UsageError: see :func:`trace`.
    """
    python_path = source_path(os.environ.get("PYTHONPATH", ""))
    alone = {"CUDA_VISIBLE_DEVICES": "", "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    environment = os.environ | python_path | alone | thread_environment(1)  # its tensors are fake: nothing is computed
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", _MODULE],
            input=msgspec.json.encode(request),
            capture_output=True,
            timeout=timeout,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"The trace did not finish within {timeout:g} s; only the formula's estimate is available."
        ) from None
    if done.returncode:
        raise UsageError(f"This recipe cannot be traced: {_last_line(done.stderr)}")
    try:
        return msgspec.json.decode(done.stdout.splitlines()[-1], type=Trace)
    except (msgspec.DecodeError, IndexError):
        raise UsageError(f"The trace gave no valid reply: {_last_line(done.stdout or done.stderr)}") from None


def configuration(model: Path) -> dict[str, Any]:
    """Read ``config.json``, with the dtype that ``dtype: auto`` loads.

    Raises:
        UsageError: not a model, or not readable.
    """
    arch: Architecture = read_architecture(model)
    config = gguf.as_config(gguf.read_header(model), model) if model.suffix == ".gguf" else read_config(model)
    return {**config, "dtype": arch.dtypes[0] if arch.dtypes else "float32"}


def _last_line(output: bytes) -> str:
    """Return the last line of output, without control characters."""
    lines = output.decode("utf-8", "replace").strip().splitlines()
    text = "".join(letter if letter.isprintable() else " " for letter in lines[-1]) if lines else "no output"
    return text[:_MOST_LETTERS]
