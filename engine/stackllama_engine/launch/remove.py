"""Deleting runs: only what has ended, at once or not at all."""

import os
import secrets
import shutil

from ..contract.errors import RefusedError
from ..contract.run_dir import Home, RunDir
from ..contract.stages import Stage
from .children import CHILDREN, child_id, parents_of
from .owners import check_run
from .processes import run_processes
from .reconcile import reconcile


def remove(home: Home, run_id: str, *, children: bool = True) -> list[str]:
    """Delete a run that has ended; of a pipeline its children as well.

    The directory is renamed first, so that nobody sees half a run, and its name is free at once.

    Args:
        home: where runs live.
        run_id: the run.
        children: of a pipeline also delete what it made.

    Returns:
        ids of what was deleted.

    Raises:
        UsageError: no such run.
        RefusedError: it, or a child, is alive or not to be trusted; or it cannot be deleted. Nothing was changed.
    """
    run = home.run(run_id)
    doomed = [run, *(_children(home, run) if children else [])]
    for each in doomed:
        check_run(each)
        _check(each)
    removed: list[str] = []
    for each in reversed(doomed):
        _remove(each)
        removed.append(each.id)
    return removed


def users_of(home: Home, run_id: str) -> list[str]:
    """Runs that were made from this one, and would lose what they name in their recipes."""
    return [other.id for other in home.runs() if other.id != run_id and run_id in parents_of(other)]


def _children(home: Home, run: RunDir) -> list[RunDir]:
    if run.read_state().stage is not Stage.PIPELINE:
        return []
    ids = {child_id(run.id, child.suffix) for child in CHILDREN}
    return [other for other in home.runs() if other.id in ids and run.id in parents_of(other)]


def _check(run: RunDir) -> None:
    if not reconcile(run).has_ended:
        raise RefusedError(f"Run `{run.id}` is alive; stop it first: `stackllama-console runs stop {run.id}`.")
    if left := run_processes(run.path):
        pids = ", ".join(str(process.pid) for process in left)
        raise RefusedError(f"Processes of run `{run.id}` are still alive ({pids}); try again in a moment.")


def _remove(run: RunDir) -> None:
    try:
        lock = run.acquire_lock()  # nobody resumes it meanwhile
        try:
            gone = run.path.with_name(f".deleted-{run.id}-{secrets.token_hex(4)}")  # a leading dot: no run id
            run.path.rename(gone)
            shutil.rmtree(gone)
        finally:
            os.close(lock)
    except OSError as error:
        raise RefusedError(f"Run `{run.id}` could not be deleted: {error}.") from None
