"""Requests to a run: to stop, and whatever is served at its next step boundary (:mod:`..contract.requests`)."""

import signal
import time

from ..contract import requests
from ..contract.children import children_of
from ..contract.disk_space import is_full
from ..contract.errors import RefusedError, UsageError
from ..contract.requests import Ask
from ..contract.run_dir import RunDir, State
from ..contract.stages import Stage
from .kept_directory import KeptDirectory
from .ownership import check_run
from .processes import send
from .reconcile import reconcile
from .run_location import Silence
from .slurm_queue import cancel

_POLL_SECONDS = 0.1


def stop(run: RunDir, *, wait: bool) -> State:
    """Ask a run to save and stop.

    Args:
        run: the run; one that has ended is left as it is.
        wait: return only when it has ended, or when another machine that it is on has been silent for too long. The
            supervisor ends a worker that does not comply. A directory that is renamed meanwhile is found again.

    If a pipeline's coordinator was killed, the child that continues alone is stopped.

    Returns:
        the state now.

    Raises:
        UsageError: the state cannot be read; the directory was removed meanwhile.
        RefusedError: it is another user's (:mod:`.ownership`).
    """
    check_run(run)
    state = cancel(run, reconcile(run))
    if not state.has_ended:
        request_stop(run, state)
        if wait:
            state = _wait_for_end(run, state)
    if state.has_ended and state.stage is Stage.PIPELINE:
        for child in children_of(run):
            stop(child, wait=wait)
    return state


def _wait_for_end(run: RunDir, state: State) -> State:
    silence = Silence()
    directory = KeptDirectory(run.path)
    try:
        while not state.has_ended and not silence.too_long(run, state):
            time.sleep(_POLL_SECONDS)
            path = directory.find()
            if path is None:
                raise UsageError(
                    f"{run.path} was removed while waiting for run `{run.id}`; its processes are being ended."
                )
            run = RunDir(path)
            state = reconcile(run)
        return state
    finally:
        directory.close()


def request_stop(run: RunDir, state: State) -> None:
    """Request a stop by a file; where none can be written, by SIGTERM to the supervisor.

    Raises:
        RefusedError: no file can be written, and no supervisor is on this machine.
    """
    try:
        run.request("stop")
    except OSError as error:
        if state.supervisor is not None and send(state.supervisor, signal.SIGTERM):
            return
        if not is_full(error):
            raise RefusedError(f"The request to stop {run.id} could not be written: {error}.") from None
        raise RefusedError(
            f"The disk is full: the request to stop {run.id} could not be written. Make room under {run.path}."
        ) from None


def try_to_stop(run: RunDir, state: State) -> bool:
    """Return whether :func:`request_stop` worked, for a caller that retries."""
    try:
        request_stop(run, state)
    except RefusedError:
        return False
    return True


def ask(run: RunDir, what: Ask, change: str | None = None) -> RunDir:
    """Send a request to a training run, or to a pipeline's running child; served at the next step boundary.

    Args:
        run: the run, or a pipeline.
        what: see :mod:`..contract.requests`.
        change: ``key=value`` of ``set``.

    Returns:
        the run that will serve the request.

    Raises:
        RefusedError: it has ended, its stage cannot serve it, or it is another user's (:mod:`.ownership`).
        UsageError: ``change`` is not ``key=value``, or has a value that the recipe would refuse.
    """
    check_run(run)
    target, state = _target(run, what)
    try:
        requests.write(target, what, requests.parse_change(state.stage, change or "") if what == "set" else None)
    except OSError as error:
        if not is_full(error):
            raise RefusedError(f"The request to {target.id} could not be written: {error}.") from None
        raise RefusedError(
            f"The disk is full: the request to {target.id} could not be written. Make room under {target.path}."
        ) from None
    return target


def check_change(run: RunDir, change: str) -> None:
    """Check that :func:`ask` would take a change now.

    Raises:
        RefusedError, UsageError: as :func:`ask`.
    """
    requests.parse_change(_target(run, "set")[1].stage, change)


def _target(run: RunDir, what: Ask) -> tuple[RunDir, State]:
    """Return the run that serves a request, and its state."""
    state = reconcile(run)
    if state.stage is Stage.PIPELINE and not state.has_ended and state.phase != "queued":
        child = next((child for child in reversed(children_of(run)) if not reconcile(child).has_ended), None)
        if child is None:
            raise RefusedError(f"{run.id} is between two stages; try again in a moment.")
        return _target(child, what)
    requests.check(run.id, state, what)
    return run, state
