"""Reconciliation of a run: a free lock and an unfinished state mean that its supervisor is gone.

Every command that reads a run does it, but only on the machine that the run is on (:mod:`.run_location`), and never by
comparing two wall clocks.
"""

import contextlib
import time

import msgspec

from ..contract.children import children_of
from ..contract.disk_space import Reserve, is_full
from ..contract.errors import RefusedError, StackllamaError
from ..contract.events import Event, EventReader
from ..contract.history import fold
from ..contract.redact import redactor
from ..contract.requests import PAUSED
from ..contract.run_dir import RunDir, State
from ..contract.stages import Stage
from .attempt_outcome import Outcome, from_end_event, last_log_lines, on_resume
from .disk import full_disk
from .moved_run import remove_leftover_link
from .ownership import run_problem
from .processes import kill_run_processes
from .rendezvous_dir import remove_rendezvous_dir
from .run_location import check_gone, elsewhere, refuse_elsewhere
from .scrub import scrub_folder
from .slurm_queue import in_slurm, is_inside, job_of

_QUEUED_SECONDS = 10.0  # between a run's creation and its lock; a launcher that takes longer has died

_LOST = (
    "The supervisor ended without recording an outcome: it was killed, or the machine went down. {survivors}{on_resume}"
)
_HOST_GONE = "The run was on {host}, which was declared gone (--host-gone). {on_resume}"


def reconcile(run: RunDir, *, host_gone: str | None = None) -> State:
    """Return the state of a run; if nobody holds the lock of an unfinished one, end its processes and mark it ``lost``.

    An attempt that wrote its ``end`` event keeps that outcome. A run on another machine is left as it is.

    Args:
        run: the run.
        host_gone: name of another machine that is gone for good, with all processes of the run.

    Raises:
        UsageError: the state cannot be read; the run is on another machine than the one that is gone.
        TimeoutError: a process survived SIGKILL.
    """
    state = run.read_state()
    gone = check_gone(run, state, host_gone)
    if not gone and not _abandoned(run, state):
        return state
    gone_host = host_gone if gone else None
    if problem := run_problem(run):  # another user's: report it, change nothing
        return _unrecorded(run, state, gone_host, problem)
    try:
        lock = run.acquire_lock(holder_gone=gone)
    except RefusedError:  # taken meanwhile by a resume, or by another command that reconciles
        return run.read_state()
    except OSError as error:  # a read-only home: report the state, change nothing
        return _unrecorded(run, state, gone_host, f"{error}.")
    try:
        before, state = state, run.read_state()
        meanwhile = state.has_ended or state.host != before.host  # another command reconciled it, or began an attempt
        return state if meanwhile else _close(run, state, gone_host)
    finally:
        run.release_lock(lock)


def ensure_ended(run: RunDir, verb: str, host_gone: str | None = None) -> None:
    """Require that a run has ended; reconcile the children of a pipeline on a machine that is gone.

    Raises:
        RefusedError: it is alive; the message says what to do before the verb.
        UsageError: it is on another machine than the one that is gone.
    """
    state = reconcile(run, host_gone=host_gone)
    if not state.has_ended:
        if there := elsewhere(run, state):
            raise refuse_elsewhere(run, there, verb)
        if verb == "resume" and _is_paused(run, state):
            raise RefusedError(f"Run `{run.id}` is paused; continue it: `stackllama-console runs continue {run.id}`.")
        raise RefusedError(f"Run `{run.id}` is alive; stop it first: `stackllama-console runs stop {run.id}`.")
    if host_gone is not None and state.stage is Stage.PIPELINE:
        for child in children_of(run):
            reconcile(child, host_gone=host_gone)


def _is_paused(run: RunDir, state: State) -> bool:
    """Return whether the run, or the running child of a pipeline, is paused."""
    if state.stage is Stage.PIPELINE:
        alive = ((child, child.read_state()) for child in reversed(children_of(run)))
        return next((_is_paused(child, its) for child, its in alive if not its.has_ended), False)
    events = EventReader(run.attempt_dir(state.attempt) / "events.jsonl").read_what_can_be()
    return fold(events).phase == PAUSED


def newest_end_event(run: RunDir, attempt: int) -> Event | None:
    """Return the ``end`` event of an attempt, if it wrote one."""
    last: Event | None = None
    for event in EventReader(run.attempt_dir(attempt) / "events.jsonl").read_what_can_be():
        if event.kind == "end":
            last = event
    return last


def _abandoned(run: RunDir, state: State) -> bool:
    if state.has_ended or run.lock_is_held():
        return False
    job = job_of(run)
    if job is not None and not is_inside(job):
        return not in_slurm(job)  # Slurm knows every machine
    if elsewhere(run, state) is not None:
        return False
    if state.phase != "queued" or state.supervisor is not None:  # one that waits for its turn has a supervisor
        return True
    return job is None and (state.host is None or not state.host.within(_QUEUED_SECONDS))


def _why_lost(run: RunDir, state: State, gone_host: str | None, survivors: str = "") -> str:
    text = _HOST_GONE if gone_host else _LOST
    return text.format(host=gone_host, survivors=survivors, on_resume=on_resume(run, state.stage))


def _unrecorded(run: RunDir, state: State, gone_host: str | None, why: str) -> State:
    cause = f"{_why_lost(run, state, gone_host)} Not recorded: {why}"
    return msgspec.structs.replace(state, phase="lost", cause=cause, waiting=None)


def _close(run: RunDir, state: State, gone_host: str | None) -> State:
    killed = kill_run_processes(run.path)
    state = msgspec.structs.replace(state, waiting=None)
    remove_rendezvous_dir(run.attempt_dir(state.attempt))
    remove_leftover_link(run)
    Reserve(run.path).release()
    with contextlib.suppress(OSError):  # a full disk must not hide how the run ended
        scrub_folder(run.attempt_dir(state.attempt), redactor())
    end = newest_end_event(run, state.attempt)
    if end is not None:
        outcome = _explained(run, state, from_end_event(end))
        state = msgspec.structs.replace(
            state, phase=outcome.phase, exit_code=outcome.exit_code, cause=outcome.cause, ended=end.time
        )
    else:
        survivors = f"{killed} of its processes were still running and were killed. " if killed else ""
        cause = _why_lost(run, state, gone_host, survivors)
        evidence = None if gone_host else full_disk(run, run.attempt_dir(state.attempt))
        if evidence:
            cause += f" The disk is full ({evidence}): make room under {run.path} first."
        state = msgspec.structs.replace(
            state,
            phase="lost",
            cause=cause,
            ended=time.time(),
            last_lines=last_log_lines(run.attempt_dir(state.attempt) / "log.txt"),
        )
    try:
        run.write_state(state)
    except OSError as error:
        if not is_full(error):
            raise
        return state  # recorded by a later command when there is room
    run.drop_spare_state()
    if state.phase == "finished":
        from .calibrate import add_finished

        with contextlib.suppress(OSError, StackllamaError):  # a full disk: later estimates stay wider
            add_finished(run, state)
    return state


def _explained(run: RunDir, state: State, outcome: Outcome) -> Outcome:
    """Add to the cause what is known about memory."""
    from .autopsy import explain

    try:
        cause = explain(run, state, outcome)
    except (OSError, StackllamaError):  # its recipe or model is gone: keep the worker's cause
        cause = None
    return msgspec.structs.replace(outcome, cause=cause) if cause else outcome
