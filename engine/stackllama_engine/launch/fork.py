"""Forks: a new run that continues from a checkpoint of another one, with some keys of its recipe changed.

The checkpoint is copied, so that neither run needs the other afterwards. What a resume restores from a checkpoint
whatever the recipe says is changed as ``runs set`` changes it, by a request that waits when the fork starts
(:func:`.launcher.settings_of`), and counts from its second step on; keys that cannot be set that way are refused.
"""

import errno
import shutil
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import cast

import msgspec
from msgspec import Struct

from ..contract import checkpoints
from ..contract.errors import RecipeError, RefusedError, UsageError
from ..contract.recipe import TrainRecipe
from ..contract.recipe_io import Reading, read_recipe
from ..contract.requests import SETTABLE
from ..contract.resuming import changes
from ..contract.run_dir import ForkedFrom, Home, RunDir
from ..contract.stages import TRAINING_STAGES
from . import launcher
from .launcher import Plan
from .slurm_queue import is_inside, job_of
from .uninterrupted import uninterrupted


class Fork(Struct, frozen=True, kw_only=True):
    """A fork, planned.

    Attributes:
        plan: of the new run.
        checkpoint: it continues from this one.
        reading: the new recipe, with the notes on its words.
    """

    plan: Plan
    checkpoint: Path
    reading: Reading

    @property
    def origin(self) -> ForkedFrom:
        """Where the new run comes from."""
        return ForkedFrom(run=self.checkpoint.parents[1].name, step=checkpoints.step_of(self.checkpoint))


def plan_fork(
    home: Home,
    run: RunDir,
    step: int | None,
    overrides: Sequence[str],
    name: str | None,
    *,
    allow: Sequence[str] = (),
) -> Fork:
    """Check a fork and settle what it will run. Touches nothing.

    Args:
        home: where both live.
        run: the run to fork; it may be running.
        step: of the checkpoint; None: the newest one.
        overrides: ``key=value``, the changes of the recipe.
        name: id of the new run; None: the run's, and the step.
        allow: findings that are to be warnings, besides those that the run's launch allowed.

    Raises:
        UsageError: there is no such checkpoint, or the recipe is wrong.
        RefusedError: the run trains nothing or is a Slurm run, or a key cannot change within a run.
    """
    stage = run.read_state().stage
    if stage not in TRAINING_STAGES:
        raise RefusedError(f"`{run.id}` is a {stage} run, which has no checkpoints; fork one of its stages.")
    if (job := job_of(run)) is not None and not is_inside(job):
        raise RefusedError(f"`{run.id}` is a Slurm run, and a fork would train on this machine; fork it within a job.")
    checkpoint = _checkpoint(run, step)
    reading = read_recipe(stage, run.recipe_file, list(overrides))
    recipe = cast("TrainRecipe", reading.recipe)
    differences = changes(checkpoint, recipe)
    most = msgspec.to_builtins(recipe)["max_steps"]
    if 0 < most <= checkpoints.step_of(checkpoint):
        raise RecipeError(f"`max_steps: {most}`: {checkpoint.name} has reached it; raise it.")
    if differences.refused:
        named = ", ".join(map(str, differences.refused))
        raise RefusedError(f"{checkpoint.name} depends on what changes: {named}. Launch a run from the start instead.")
    settable = SETTABLE[stage]
    if fixed := [str(each) for each in differences.kept if each.key not in settable]:
        can = ", ".join(f"`{key}`" for key in settable)
        raise RefusedError(
            f"{', '.join(fixed)}: the value stays the checkpoint's; of such keys a fork can change {can}."
        )
    name = name or _free_name(home, f"{run.id}-at-{checkpoints.step_of(checkpoint)}")
    plan = launcher.plan(home, reading.recipe, name, parents=[run.id], allow={*launcher.allowed_in(run), *allow})
    return Fork(plan=plan, checkpoint=checkpoint, reading=reading)


def launch_fork(fork: Fork) -> RunDir:
    """Create the run with a copy of the checkpoint, and start it.

    Raises:
        UsageError, RefusedError: as :func:`plan_fork`, or the checkpoint does not verify; nothing was created.
        StackllamaError: the supervisor could not be started; the run says why.
    """

    def fill(run: RunDir) -> None:
        target = run.checkpoints / fork.checkpoint.name
        try:
            shutil.copytree(fork.checkpoint, target)
        except (shutil.Error, FileNotFoundError) as error:
            if checkpoints.problem(fork.checkpoint) is None:  # a full disk; else its run removed it meanwhile
                raise OSError(errno.EIO, str(error), str(target)) from error
        reason = checkpoints.problem(target)
        if reason:
            shutil.rmtree(run.path)
            raise RefusedError(f"{fork.checkpoint} {reason}, so nothing was started; fork at another checkpoint.")

    with uninterrupted():
        return launcher.launch(fork.plan, fill=fill, forked_from=fork.origin)


def _checkpoint(run: RunDir, step: int | None) -> Path:
    there = checkpoints.sealed(run.checkpoints)
    if not there:
        raise UsageError(f"`{run.id}` has no checkpoint to fork at.")
    found = there[-1:] if step is None else [path for path in there if checkpoints.step_of(path) == step]
    if not found:
        steps = ", ".join(str(checkpoints.step_of(path)) for path in there)
        raise UsageError(f"`{run.id}` has no checkpoint of step {step}; it has those of {steps}.")
    return found[0]


def _free_name(home: Home, name: str) -> str:
    taken = {run.id for run in home.unsorted_runs()}
    numbered = (f"{name}-{number}" for number in count(2))
    return next(each for each in chain([name], numbered) if each not in taken)
