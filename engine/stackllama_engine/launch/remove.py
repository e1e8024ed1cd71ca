"""Deletion of runs that have ended, whole or not at all."""

import errno

from ..contract.children import children_of, known_parents
from ..contract.errors import DamagedError, RefusedError
from ..contract.run_dir import Home, RunDir, check_run_id, kind_of
from ..contract.stages import Stage
from .leftovers import delete_marked, remove_leftover
from .ownership import check_home, check_run
from .processes import run_processes
from .reconcile import ensure_ended
from .repair import stage_of
from .run_location import elsewhere_of_damaged, is_gone, refuse_elsewhere


def remove(home: Home, run_id: str, *, children: bool = True, host_gone: str | None = None) -> list[str]:
    """Delete a run that has ended, with a pipeline's children; or a leftover of a launch under its name.

    The directory is renamed first, so that no partial run is ever listed and its name is free at once.

    Args:
        home: where runs live.
        run_id: the run.
        children: also delete the runs that a pipeline made.
        host_gone: name of another machine that is gone for good, with all processes of the run.

    Returns:
        ids of the deleted runs.

    Raises:
        UsageError: no such run.
        RefusedError: it, or a child, is alive or not to be trusted; or it cannot be deleted. Nothing was changed.
    """
    check_home(home)
    path = home.runs_dir / check_run_id(run_id)
    if kind_of(path) == "leftover":
        remove_leftover(path)
        return [run_id]
    run = home.run(run_id)
    doomed = [run, *(_children(run) if children else [])]
    for each in doomed:
        check_run(each)
        _check(each, host_gone)
    removed: list[str] = []
    for each in reversed(doomed):
        _remove(each, holder_gone=host_gone is not None)
        removed.append(each.id)
    return removed


def users_of(home: Home, run_id: str) -> list[str]:
    """List the runs that were made from this one, whose recipes name its files."""
    return [other.id for other in home.runs() if other.id != run_id and run_id in known_parents(other)]


def _children(run: RunDir) -> list[RunDir]:
    return children_of(run) if _stage(run) is Stage.PIPELINE else []


def _stage(run: RunDir) -> Stage | None:
    try:
        return run.read_state().stage
    except DamagedError:
        return stage_of(run)


def _check(run: RunDir, host_gone: str | None) -> None:
    try:
        ensure_ended(run, "rm", host_gone)
    except DamagedError:
        _check_damaged(run, host_gone)
    if left := run_processes(run.path):
        pids = ", ".join(str(process.pid) for process in left)
        raise RefusedError(f"Processes of run `{run.id}` are still alive ({pids}); try again in a moment.")


def _check_damaged(run: RunDir, host_gone: str | None) -> None:
    """Refuse a run with an unreadable state by its lock, and by the machine it was started on."""
    there = elsewhere_of_damaged(run)
    if there is not None and not is_gone(run, there, host_gone):
        raise refuse_elsewhere(run, there, "rm")
    if there is None and run.lock_is_held():
        raise RefusedError(f"Run `{run.id}` is alive; stop it first: `stackllama-console runs stop {run.id}`.")


def _remove(run: RunDir, *, holder_gone: bool) -> None:
    try:
        lock = _acquire_lock(run, holder_gone=holder_gone)  # so that no resume starts meanwhile
        try:
            delete_marked(run.path)
        finally:
            if lock is not None:
                run.release_lock(lock)
    except OSError as error:
        raise RefusedError(f"Run `{run.id}` could not be deleted: {error}.") from None


def _acquire_lock(run: RunDir, *, holder_gone: bool) -> int | None:
    """Acquire the run's lock; None where it is not a regular file, which nobody can hold."""
    try:
        return run.acquire_lock(holder_gone=holder_gone)
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ELOOP, errno.ENXIO):
            return None
        raise
