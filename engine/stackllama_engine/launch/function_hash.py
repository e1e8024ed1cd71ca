"""Record of the code that a recipe names: made at launch, confirmed when it has changed at resume.

``launch.json`` holds the file that the stage imports ``reward_fn`` from and its SHA-256. What that file imports in turn
is not recorded. A run of a version that did not record it gets its record at the first resume, which says so.
"""

import hashlib
from typing import Any

import msgspec

from ..contract.errors import UnconfirmedError, UsageError
from ..contract.recipe import AnyRecipe, PipelineRecipe, PPORecipe
from ..contract.run_dir import FunctionFile, RunDir
from .functions import imported_file

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


def reward_function(recipe: AnyRecipe) -> FunctionFile | None:
    """Return the file and hash that ``reward_fn`` would be imported from now; None: the recipe has none.

    Raises:
        UsageError: there is no such module, or its file cannot be read.
    """
    keys: dict[str, Any] = {}
    if isinstance(recipe, PPORecipe):
        keys = {"reward_fn": recipe.reward_fn, "reward_fn_path": recipe.reward_fn_path}
    elif isinstance(recipe, PipelineRecipe):
        keys = dict(recipe.ppo)
    if not (reference := keys.get("reward_fn")):
        return None
    file = imported_file("reward_fn", reference, keys.get("reward_fn_path"))
    try:
        with file.open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"`reward_fn: {reference}`: {file} cannot be read: {error.strerror}.") from None
    return FunctionFile(reference=reference, file=str(file), sha256=digest)


def check_function(run: RunDir, recipe: AnyRecipe, *, accepted: bool = False) -> FunctionFile | None:
    """Return what to record for a run's next attempt.

    Args:
        run: whose launch recorded what it was then.
        recipe: the attempt's.
        accepted: the person knows that it changed.

    Raises:
        FunctionChangedError: it changed.
        UsageError: as :func:`reward_function`.
    """
    now, then = reward_function(recipe), _recorded(run)
    if now is None or now == then or then is msgspec.UNSET or accepted:
        return now
    raise FunctionChangedError(run.id, _difference(now, then))


def unrecorded_notice(run: RunDir, recipe: AnyRecipe) -> str | None:
    """Return a notice where a resume is the first to record a run's function; else None."""
    if _recorded(run) is not msgspec.UNSET or not (now := reward_function(recipe)):
        return None
    return (
        f"`reward_fn: {now.reference}`: this run was launched by a version that did not record its code; "
        f"from now on it is {now.file} with SHA-256 {now.sha256[:_SHOWN]}…"
    )


def _recorded(run: RunDir) -> "FunctionFile | msgspec.UnsetType | None":
    return run.read_launch().reward_fn if (run.path / "launch.json").is_file() else msgspec.UNSET


def _difference(now: FunctionFile, then: "FunctionFile | msgspec.UnsetType | None") -> str:
    what = f"`reward_fn: {now.reference}`"
    if not isinstance(then, FunctionFile):
        return f"{what} is in its recipe now, in {now.file}; it was launched without one."
    if now.reference != then.reference:
        return f"{what} is in its recipe now; it was launched with `{then.reference}`."
    if now.file != then.file:
        return f"{what} is now {now.file}; it was launched with {then.file}."
    return (
        f"{now.file}, which holds {what}, has changed since the launch "
        f"(SHA-256 {then.sha256[:_SHOWN]}… then, {now.sha256[:_SHOWN]}… now)."
    )
