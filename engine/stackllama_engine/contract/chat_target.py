"""The weights of a run that can be chatted with: its result, or one of its checkpoints. No torch here."""

from pathlib import Path

from msgspec import Struct

from .children import CHILDREN, child_id
from .errors import RefusedError, UsageError
from .run_dir import RunDir
from .stages import Stage
from .user_files import any_object

WRITING = (Stage.PPO, Stage.PREFERENCE, Stage.SFT)
"""Stages that can be chatted with from their first checkpoint on; a merge, once it has finished."""


class Target(Struct, frozen=True, kw_only=True):
    """Trained weights of a run."""

    stage: Stage
    path: Path
    """An adapter's directory, a model's directory, or a checkpoint's."""
    checkpoint: str | None = None
    """The checkpoint's name; None: the run's result."""


def find_target(run: RunDir, checkpoint: str | None = None) -> Target:
    """Return the run's result, the named checkpoint, or while there is no result the newest checkpoint.

    Args:
        run: any run.
        checkpoint: ``step-000100`` or ``100``.

    Raises:
        RefusedError: a run of this stage does not write text, or nothing is trained yet.
        UsageError: no such checkpoint.
    """
    state = run.read_state()
    if state.stage is Stage.REWARD or _is_reward_model(run.merged):
        raise RefusedError(
            f"`{run.id}` is a reward model: it scores responses and writes none; chat with {_others(run)}"
        )
    if state.stage is Stage.PIPELINE:
        raise RefusedError(f"`{run.id}` is a pipeline; chat with one of its stages: {_others(run)}")
    names = checkpoint_names(run)
    if checkpoint is not None:
        name = f"step-{int(checkpoint):06d}" if checkpoint.isascii() and checkpoint.isdigit() else checkpoint
        if name not in names:
            existing = ", ".join(names) or "none"
            raise UsageError(f"`{run.id}` has no checkpoint `{checkpoint}`; there are: {existing}.")
        return Target(stage=state.stage, path=run.checkpoints / name, checkpoint=name)
    for result in (run.adapter, run.merged):
        if result.is_dir():
            return Target(stage=state.stage, path=result)
    if names:
        return Target(stage=state.stage, path=run.checkpoints / names[-1], checkpoint=names[-1])
    raise RefusedError(
        f"`{run.id}` is {state.phase} and has trained nothing that was saved yet: neither a result nor a checkpoint."
    )


def has_target(run: RunDir) -> bool:
    """Return whether a run has weights to chat with."""
    try:
        find_target(run)
    except (RefusedError, UsageError, OSError):
        return False
    return True


def checkpoint_names(run: RunDir) -> list[str]:
    """Return the names of the sealed checkpoints, oldest first; one being written has another name."""
    if not run.checkpoints.is_dir():
        return []
    names = [path.name for path in run.checkpoints.iterdir() if (path / "manifest.json").is_file()]
    return sorted((name for name in names if name.removeprefix("step-").isdigit()), key=lambda name: int(name[5:]))


def _is_reward_model(model: Path) -> bool:
    """Return whether a model's directory holds a sequence classifier."""
    try:
        config = any_object(model / "config.json")
    except (OSError, ValueError):  # none there, or one that loading will report
        return False
    return "SequenceClassification" in str(config.get("architectures"))


def _others(run: RunDir) -> str:
    """Return the ids of the pipeline's runs that write text, or in general which those are."""
    pipeline = next((run.id.removesuffix(f"-{c.suffix}") for c in CHILDREN if run.id.endswith(f"-{c.suffix}")), run.id)
    ids = [child_id(pipeline, child.suffix) for child in reversed(CHILDREN) if child.stage in WRITING]
    writers = [name for name in ids if (run.path.parent / name / "state.json").is_file()]
    return " or ".join(f"`{name}`" for name in writers) + "." if writers else "an sft, preference, ppo or merge run."
