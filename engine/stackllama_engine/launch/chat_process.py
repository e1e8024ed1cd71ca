"""What of a run can be talked to, and the command of the process that talks. No torch here."""

import os
import sys
from pathlib import Path

from msgspec import Struct

from ..contract.child_environment import inherited_environment, source_path
from ..contract.errors import RefusedError, UsageError
from ..contract.run_dir import RunDir
from ..contract.stages import Stage
from ..contract.user_files import any_object
from .children import CHILDREN, child_id

_TALKING = (Stage.PPO, Stage.SFT)


class Target(Struct, frozen=True, kw_only=True):
    """Trained weights of a run."""

    stage: Stage
    path: Path
    """An adapter's directory, a model's directory, or a checkpoint's."""
    checkpoint: str | None = None
    """The checkpoint's name; None: the run's result."""


def find_target(run: RunDir, checkpoint: str | None = None) -> Target:
    """The run's result, the named checkpoint, or while there is no result the newest checkpoint.

    Args:
        run: any run.
        checkpoint: ``step-000100`` or ``100``.

    Raises:
        RefusedError: a run of this stage does not write text, or nothing is trained yet.
        UsageError: no such checkpoint.
    """
    state = run.read_state()
    if state.stage is Stage.REWARD or _judges(run.merged):
        raise RefusedError(f"`{run.id}` is a reward model: it scores answers and writes none; chat with {_others(run)}")
    if state.stage is Stage.PIPELINE:
        raise RefusedError(f"`{run.id}` is a pipeline; chat with one of its stages: {_others(run)}")
    names = _checkpoints(run)
    if checkpoint is not None:
        name = f"step-{int(checkpoint):06d}" if checkpoint.isascii() and checkpoint.isdigit() else checkpoint
        if name not in names:
            there = ", ".join(names) or "none"
            raise UsageError(f"`{run.id}` has no checkpoint `{checkpoint}`; there are: {there}.")
        return Target(stage=state.stage, path=run.checkpoints / name, checkpoint=name)
    for result in (run.adapter, run.merged):
        if result.is_dir():
            return Target(stage=state.stage, path=result)
    if names:
        return Target(stage=state.stage, path=run.checkpoints / names[-1], checkpoint=names[-1])
    raise RefusedError(
        f"`{run.id}` is {state.phase} and has trained nothing that was saved yet: neither a result nor a checkpoint."
    )


def chat_command(run: RunDir, checkpoint: str | None = None, *, cpu: bool = False) -> tuple[list[str], dict[str, str]]:
    """The generator's argv and environment. It does not belong to the run: stopping that leaves it alone."""
    argv = [sys.executable, "-P", "-m", "stackllama_engine.train.chat", str(run.path)]
    argv += [f"--checkpoint={checkpoint}"] if checkpoint is not None else []
    argv += ["--cpu"] if cpu else []
    inherited = inherited_environment()
    return argv, {**inherited, **source_path(os.environ.get("PYTHONPATH", "")), "PYTHONUNBUFFERED": "1"}


def _checkpoints(run: RunDir) -> list[str]:
    """Names of the sealed checkpoints, oldest first; one being written has another name."""
    if not run.checkpoints.is_dir():
        return []
    names = [path.name for path in run.checkpoints.iterdir() if (path / "manifest.json").is_file()]
    return sorted((name for name in names if name.removeprefix("step-").isdigit()), key=lambda name: int(name[5:]))


def _judges(model: Path) -> bool:
    """Whether a model's directory holds a sequence classifier."""
    try:
        config = any_object(model / "config.json")
    except (OSError, ValueError):  # none there, or one that loading will complain about
        return False
    return "SequenceClassification" in str(config.get("architectures"))


def _others(run: RunDir) -> str:
    """Ids of the pipeline's runs that write text, or in general which those are."""
    pipeline = next((run.id.removesuffix(f"-{c.suffix}") for c in CHILDREN if run.id.endswith(f"-{c.suffix}")), run.id)
    ids = [child_id(pipeline, child.suffix) for child in reversed(CHILDREN) if child.stage in _TALKING]
    found = [name for name in ids if (run.path.parent / name / "state.json").is_file()]
    return " or ".join(f"`{name}`" for name in found) + "." if found else "an sft, ppo or merge run."
