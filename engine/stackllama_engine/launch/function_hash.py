"""Record of the code that a recipe names: made at launch, confirmed when it has changed at resume.

``launch.json`` holds the file that the stage imports each of ``reward_funcs`` from and its SHA-256. What that file
imports in turn is not recorded. A run of a version that did not record it gets its record at the first resume, which
says so.
"""

import hashlib
from collections.abc import Sequence

import msgspec

from ..contract.errors import UnconfirmedError, UsageError
from ..contract.recipe import AnyRecipe, PipelineRecipe, PPORecipe, RewardFunc
from ..contract.run_dir import FunctionFile, RunDir
from ..contract.stages import Stage
from .functions import KEY, imported_file
from .sections import stage_recipe

_SHOWN = 12  # digits of a hash


class FunctionChangedError(UnconfirmedError):
    """Code that a recipe names is no longer what it was at launch.

    Args:
        run_id: the run that was to be resumed.
        reason: what is different, in a sentence.
    """

    def __init__(self, run_id: str, reason: str) -> None:
        flag = "--reward-fn-changed"
        way_out = f"Review it; to accept it: `stackllama-console runs resume {run_id} {flag}`."
        reasons = [f"Run `{run_id}`: {reason} It would run with your permissions."]
        super().__init__("function_changed", flag, reasons, "Run it as it is now?", way_out)


def reward_functions(recipe: AnyRecipe) -> list[FunctionFile]:
    """Return the files and hashes that ``reward_funcs`` would be imported from now.

    Raises:
        UsageError: there is no such module, or its file cannot be read.
    """
    if isinstance(recipe, PipelineRecipe):
        recipe = stage_recipe(recipe, Stage.PPO)
    return [_hashed(function) for function in recipe.functions] if isinstance(recipe, PPORecipe) else []


def check_functions(run: RunDir, recipe: AnyRecipe, *, accepted: bool = False) -> list[FunctionFile]:
    """Return what to record for a run's next attempt.

    Args:
        run: whose launch recorded what it was then.
        recipe: the attempt's.
        accepted: the person knows that it changed.

    Raises:
        FunctionChangedError: it changed.
        UsageError: as :func:`reward_functions`.
    """
    now, then = reward_functions(recipe), _recorded(run)
    changed = [] if accepted or then is None else [function for function in now if function not in then]
    if changed:
        raise FunctionChangedError(run.id, _difference(changed[0], then or []))
    return now


def unrecorded_notice(run: RunDir, recipe: AnyRecipe) -> str | None:
    """Return a notice where a resume is the first to record a run's functions; else None."""
    if _recorded(run) is not None or not (now := reward_functions(recipe)):
        return None
    files = " and ".join(f"{one.file} with SHA-256 {one.sha256[:_SHOWN]}…" for one in now)
    return (
        f"`reward_funcs: {', '.join(one.reference for one in now)}`: this run was launched by a version that did not "
        f"record its code; from now on it is {files}"
    )


def _hashed(function: RewardFunc) -> FunctionFile:
    file = imported_file(function.reference, function.directory)
    try:
        with file.open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"`{KEY}: {function.reference}`: {file} cannot be read: {error.strerror}.") from None
    return FunctionFile(reference=function.reference, file=str(file), sha256=digest)


def _recorded(run: RunDir) -> list[FunctionFile] | None:
    """Return what the launch recorded; None: it was of a version that recorded nothing."""
    if not (run.path / "launch.json").is_file():
        return None
    launch = run.read_launch()
    if launch.reward_funcs is not msgspec.UNSET:
        return launch.reward_funcs
    if launch.reward_fn is msgspec.UNSET:
        return None
    return [launch.reward_fn] if launch.reward_fn else []


def _difference(now: FunctionFile, recorded: Sequence[FunctionFile]) -> str:
    what = f"`{KEY}: {now.reference}`"
    then = next((one for one in recorded if one.reference == now.reference), None)
    if then is None:
        others = ", ".join(f"`{one.reference}`" for one in recorded)
        return (
            f"{what} is in its recipe now, in {now.file}; it was launched with{f' {others}' if others else 'out one'}."
        )
    if now.file != then.file:
        return f"{what} is now {now.file}; it was launched with {then.file}."
    return (
        f"{now.file}, which holds {what}, has changed since the launch "
        f"(SHA-256 {then.sha256[:_SHOWN]}… then, {now.sha256[:_SHOWN]}… now)."
    )
