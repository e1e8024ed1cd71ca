"""Whoever looks at a run sets it right: a free lock and an unfinished state mean that its supervisor is gone."""

import contextlib
import os
import signal
import time

import msgspec

from ..contract import requests
from ..contract.errors import RefusedError, StackllamaError
from ..contract.events import Event, EventReader
from ..contract.redact import redactor
from ..contract.requests import Ask
from ..contract.room import Reserve, is_full
from ..contract.run_dir import Home, RunDir, State
from ..contract.stages import Stage
from .children import CHILDREN, child_id, parents_of
from .outcome import Outcome, from_end_event, last_log_lines
from .processes import kill_run_processes, send
from .scrub import scrub_folder
from .slurm_queue import cancel, in_slurm

_QUEUED_SECONDS = 10.0  # between a run's creation and its lock; a launcher that takes longer has died
_POLL_SECONDS = 0.1

_LOST = (
    "The supervisor ended without recording an outcome: it was killed, or the machine went down. {survivors}"
    "Resuming goes on from the last checkpoint."
)


def reconcile(run: RunDir) -> State:
    """The state of a run; when nobody holds an unfinished run, its survivors are killed and it becomes ``lost``.

    An attempt that said itself how it ended keeps that outcome.

    Raises:
        UsageError: the state cannot be read.
        TimeoutError: a survivor outlived SIGKILL.
    """
    state = run.read_state()
    if not _abandoned(run, state):
        return state
    try:
        lock = run.acquire_lock()
    except RefusedError:  # somebody took it meanwhile: a resume, or another who looks
        return run.read_state()
    except OSError as error:  # a home that may be read but not written: say what is seen, change nothing
        return msgspec.structs.replace(
            state, phase="lost", cause=f"{_LOST.format(survivors='')} Not recorded: {error}."
        )
    try:
        state = run.read_state()
        return state if state.has_ended else _close(run, state)
    finally:
        os.close(lock)


def stop(run: RunDir, *, wait: bool) -> State:
    """Ask a run to save and stop.

    Args:
        run: the run; one that has ended is left as it is.
        wait: return only when it has ended. The supervisor ends a worker that does not comply.

    Of a pipeline whose coordinator was killed, the child that goes on alone is stopped.

    Returns:
        the state now.
    """
    state = cancel(run, reconcile(run))
    if not state.has_ended:
        _request_stop(run, state)
    while wait and not state.has_ended:
        time.sleep(_POLL_SECONDS)
        state = reconcile(run)
    if state.has_ended and state.stage is Stage.PIPELINE:
        for child in _children(run):
            stop(child, wait=wait)
    return state


def _request_stop(run: RunDir, state: State) -> None:
    """By a file; where the disk has no room for one, by a signal to the supervisor, which says the same.

    Raises:
        RefusedError: there is neither room nor a supervisor on this machine.
    """
    try:
        run.request("stop")
    except OSError as error:
        if not is_full(error):
            raise
        if state.supervisor is None or not send(state.supervisor, signal.SIGTERM):
            raise RefusedError(
                f"The disk is full: the request to stop {run.id} could not be written. Make room under {run.path}."
            ) from None


def ask(run: RunDir, what: Ask, change: str | None = None) -> RunDir:
    """Ask a run that trains for something; served at its next step boundary. Of a pipeline, its child at work.

    Args:
        run: the run, or a pipeline.
        what: see :mod:`..contract.requests`.
        change: ``key=value`` of ``set``.

    Returns:
        the run that was asked.

    Raises:
        RefusedError: it has ended, or its stage cannot.
        UsageError: ``change`` is not ``key=value``, or a value that the recipe would not take either.
    """
    asked, state = _asked(run, what)
    try:
        requests.write(asked, what, requests.parse_change(state.stage, change or "") if what == "set" else None)
    except OSError as error:
        if not is_full(error):
            raise
        raise RefusedError(f"The disk is full: {asked.id} cannot be asked. Make room under {asked.path}.") from None
    return asked


def check_change(run: RunDir, change: str) -> None:
    """Whether :func:`ask` would take a change now.

    Raises:
        RefusedError, UsageError: as :func:`ask`.
    """
    requests.parse_change(_asked(run, "set")[1].stage, change)


def _asked(run: RunDir, what: Ask) -> tuple[RunDir, State]:
    """Who serves a request, and its state."""
    state = reconcile(run)
    if state.stage is Stage.PIPELINE and not state.has_ended:
        child = next((child for child in reversed(_children(run)) if not reconcile(child).has_ended), None)
        if child is None:
            raise RefusedError(f"{run.id} is between two stages; try again in a moment.")
        return _asked(child, what)
    requests.check(run.id, state, what)
    return run, state


def newest_end_event(run: RunDir, attempt: int) -> Event | None:
    """The ``end`` record of an attempt, if it wrote one."""
    last: Event | None = None
    for event in EventReader(run.attempt_dir(attempt) / "events.jsonl").read():
        if event.kind == "end":
            last = event
    return last


def _children(pipeline: RunDir) -> list[RunDir]:
    ids = {child_id(pipeline.id, child.suffix) for child in CHILDREN}
    runs = (run for run in Home(pipeline.path.parents[1]).runs() if run.id in ids)
    return [run for run in runs if pipeline.id in parents_of(run)]


def _abandoned(run: RunDir, state: State) -> bool:
    if state.has_ended or run.lock_is_held() or in_slurm(run):
        return False
    return state.phase != "queued" or time.time() - state.created > _QUEUED_SECONDS


def _close(run: RunDir, state: State) -> State:
    killed = kill_run_processes(run.path)
    Reserve(run.path).release()
    with contextlib.suppress(OSError):  # a full disk hinders nobody from knowing how the run ended
        scrub_folder(run.attempt_dir(state.attempt), redactor())
    end = newest_end_event(run, state.attempt)
    if end is not None:
        outcome = _explained(run, state, from_end_event(end))
        state = msgspec.structs.replace(
            state, phase=outcome.phase, exit_code=outcome.exit_code, cause=outcome.cause, ended=end.time
        )
    else:
        survivors = f"{killed} of its processes still ran and were ended. " if killed else ""
        state = msgspec.structs.replace(
            state, phase="lost", cause=_LOST.format(survivors=survivors), ended=time.time(),
            last_lines=last_log_lines(run.attempt_dir(state.attempt) / "log.txt"),
        )  # fmt: skip
    try:
        run.write_state(state)
    except OSError as error:
        if not is_full(error):
            raise
        return state  # known, and recorded by whoever looks when there is room
    run.drop_spare_state()
    if state.phase == "finished":
        from .calibrate import add_finished

        with contextlib.suppress(OSError, StackllamaError):  # a home that is full: later estimates stay wider
            add_finished(run, state)
    return state


def _explained(run: RunDir, state: State, outcome: Outcome) -> Outcome:
    """With what can be said about a death of memory."""
    from .autopsy import explain

    try:
        cause = explain(run, state, outcome)
    except (OSError, StackllamaError):  # its recipe or its model's files have gone: the worker's own words stand
        cause = None
    return msgspec.structs.replace(outcome, cause=cause) if cause else outcome
