"""Runs under Slurm: one job per run, which saves before its time is up, requeues itself and resumes.

``submit`` creates the run and hands ``slurm.sh`` to ``sbatch``. Options are arguments of ``sbatch``, one each; the
script holds no directive, and of the recipe nothing at all: what it does is start this module with the run's path.

In the job (``python -m stackllama_engine.launch.slurm RUN_DIR``) a new attempt begins, under a supervisor as anywhere
else, and is waited for. Slurm's SIGUSR1 (``--signal=B:USR1@300``) asks it to save and stop; stopped, the job requeues
itself, and its next start resumes from the checkpoint. Jobs need process tracking by cgroups, Slurm's recommended one:
the supervisor has a session of its own. https://slurm.schedmd.com/sbatch.html
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
from msgspec import Struct

from ..contract.atomic_files import write_whole
from ..contract.child_environment import inherited_environment, source_path
from ..contract.errors import ExitCode, RefusedError, StackllamaError, UsageError
from ..contract.host import this_host
from ..contract.recipe import AnyRecipe
from ..contract.recipe_io import dump_recipe
from ..contract.redact import redact_output, secret_names
from ..contract.run_dir import Home, Launch, RunDir, State
from ..contract.stages import Stage
from ..contract.streams import open_standard_streams
from .auto_batch import refuse_open_batch
from .function_hash import reward_functions
from .launcher import begin, gone_unless_written, prepare
from .machine_check import git_commit, package_versions
from .recipe_changes import recipe_hash, refuse_changed
from .reconcile import reconcile
from .resubmit import SCRIPT, options_of, sbatch_argv, script
from .run_location import elsewhere
from .run_requests import try_to_stop
from .slurm_queue import Job, has_job, job_of, tool, write_job

_POLL_SECONDS = 0.2
_LAST_WORDS = 30.0  # seconds
_COMPLETING = 120.0  # seconds that Slurm may take to clear away a job that has ended
_ASK_SECONDS = 2.0
_ANSWER = 60.0  # seconds that sbatch and scontrol may take


def submit(
    home: Home, recipe: AnyRecipe, name: str | None, words: Iterable[str] = (), allow: Sequence[str] = ()
) -> RunDir:
    """Create a run and submit it as a job; GPUs are looked for where the job starts.

    Args:
        home: on a file system that the compute nodes share.
        recipe: of a single stage, checked by :mod:`..contract.recipe_io`; inputs are resolved here.
        name: the run id; otherwise one is made.
        words: options of sbatch, ``key=value``.
        allow: names of findings that are to be warnings (:mod:`.preflight`).

    Raises:
        UsageError, RefusedError: as :func:`.launcher.prepare`, or there is no sbatch; nothing was created.
        StackllamaError: sbatch refused the job; the run says why.
    """
    options = options_of(words)
    if recipe.stage is Stage.PIPELINE:
        raise RefusedError("A pipeline is not submitted as one job; submit its stages one after the other.")
    prepared = prepare(home, recipe, name, allow)
    recipe = prepared.recipe
    refuse_open_batch(recipe, "the card that Slurm will give is not known when a job is submitted")
    sbatch_argv(home.runs_dir / (name or "x"), options)
    if not tool("sbatch"):
        raise RefusedError("There is no `sbatch` here; --slurm is for a login node of a Slurm cluster.")
    functions = reward_functions(recipe)
    run = home.create(recipe.stage, dump_recipe(recipe), name)
    argv = sbatch_argv(run.path, options)
    pending = Job(id="", submitted=time.time(), host=this_host(), options=options)
    with gone_unless_written(run):
        write_whole(run.path / SCRIPT, script(run.path).encode())
        run.write_launch(
            Launch(
                argv=argv,
                cwd=str(run.path),
                host=socket.gethostname(),
                created=time.time(),
                versions=package_versions(),
                git_commit=git_commit(),
                parents=prepared.parents,
                secrets=secret_names(),
                reward_funcs=[*functions],
                recipe_sha256=recipe_hash(run),
                allow=[*allow],
            )
        )
        write_job(run, pending)  # before sbatch: the job may start at once
    environment = inherited_environment() | source_path(os.environ.get("PYTHONPATH", ""))
    job, problem = _submitted(argv, environment, run.path)
    if problem:
        with contextlib.suppress(OSError):  # a full disk: it is said here, and the run becomes lost
            run.write_state(_changed(run.read_state(), phase="failed", exit_code=1, cause=problem, ended=time.time()))
        raise StackllamaError(f"Run `{run.id}`: {problem}")
    with contextlib.suppress(OSError):  # a full disk: the job writes its number itself
        write_job(run, msgspec.structs.replace(pending, id=job))
    return run


def _submitted(argv: list[str], environment: dict[str, str], folder: Path) -> tuple[str, str | None]:
    """Submit the job; returns its number, and why there is none."""
    done = _asked_slurm(argv, env=environment, cwd=folder)
    if isinstance(done, str):
        return "", done
    job = done.stdout.strip().partition(";")[0]  # `job;cluster`
    if done.returncode != 0 or not job.isdecimal():
        return "", f"sbatch rejected the job: {(done.stderr or done.stdout).strip()[:500] or 'no job id'}"
    return job, None


def _asked_slurm(argv: list[str], **more: Any) -> subprocess.CompletedProcess[str] | str:
    """Run one of Slurm's commands; a text says why it could not be run."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_ANSWER, **more)
    except subprocess.TimeoutExpired:
        return f"`{argv[0]}` did not answer within {_ANSWER:g} s; check with `squeue` whether it was accepted anyway."
    except OSError as error:
        return f"`{argv[0]}` cannot be run here: {error.strerror}."


class Waiting(Struct):
    """Requests that the job received while it waited."""

    requeue: bool = False
    stop: bool = False


def work(run: RunDir, job: str) -> int:
    """Run one attempt in the job, from its beginning to its end; returns the exit code.

    Raises:
        StackllamaError: the attempt cannot begin.
    """
    requests = Waiting()

    def ask(number: int, _frame: FrameType | None) -> None:
        requests.stop = True
        requests.requeue |= number == signal.SIGUSR1

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, ask)
    first = run.read_state()
    before = elsewhere(run, first)  # Slurm starts a job again when its node died: what was there is gone
    if first.phase != "queued" and not reconcile(run, host_gone=before.host if before else None).has_ended:
        raise RefusedError(f"Run `{run.id}` is running elsewhere.")
    refuse_changed(run, first.stage)  # nobody can be asked here: `runs resume` asks, and records the answer
    begin(run, canary=None if first.attempt == 0 else False)
    stop_sent = False
    while not (state := reconcile(run)).has_ended:
        if requests.stop and not stop_sent:
            stop_sent = try_to_stop(run, state)
        time.sleep(_POLL_SECONDS)
    if state.phase == "stopped" and requests.requeue:
        _requeue(run, state, job)
    return state.exit_code if state.exit_code is not None else ExitCode.FAILED


def _requeue(run: RunDir, state: State, job: str) -> None:
    """Requeue the job, and record it first: Slurm ends this job to do so."""
    argv = ["scontrol", "requeue", job]
    deadline = time.monotonic() + _LAST_WORDS
    while run.lock_is_held() and time.monotonic() < deadline:  # the supervisor has said the last word and is leaving
        time.sleep(_POLL_SECONDS)
    lock = run.acquire_lock()
    try:
        with contextlib.suppress(OSError):  # a full disk: it stays `stopped`, and resumes all the same
            run.write_state(_changed(state, phase="queued", ended=None, exit_code=None, cause=None))
        done = _asked_slurm(argv)
        if isinstance(done, str) or done.returncode != 0:
            problem = done if isinstance(done, str) else done.stderr.strip()[:500]
            cause = f"Saved and stopped; requeueing job {job} failed: {problem}"
            print(cause, file=sys.stderr, flush=True)  # noqa: T201 - the job's output, which stays
            with contextlib.suppress(OSError):
                run.write_state(_changed(state, cause=cause))
    finally:
        run.release_lock(lock)


def _changed(state: State, **changes: object) -> State:
    return msgspec.structs.replace(state, **changes)


def main(arguments: list[str]) -> int:
    """Run the job's own process."""
    run, job = RunDir(Path(arguments[0])), os.environ.get("SLURM_JOB_ID", "")
    try:
        submission = job_of(run)
        if not job.isdecimal() or submission is None:
            raise UsageError(f"This is not the Slurm job of run `{run.id}`.")
        if submission.id not in ("", job):
            _check_resubmission(run, submission)
        write_job(run, msgspec.structs.replace(submission, id=job))
        return work(run, job)
    except StackllamaError as error:
        print(error, file=sys.stderr, flush=True)  # noqa: T201 - the job's output is all that anyone can look at
        return error.exit_code


def _check_resubmission(run: RunDir, submission: Job) -> None:
    """Check that another job may resume: the run has ended, and Slurm no longer has its job.

    Raises:
        UsageError: it may not.
    """
    if not reconcile(run).has_ended:
        raise UsageError(
            f"This is not the Slurm job of run `{run.id}`, which is job {submission.id} and has not ended."
        )
    deadline = time.monotonic() + _COMPLETING
    while has_job(submission.id):
        if time.monotonic() > deadline:
            raise UsageError(
                f"Slurm still has job {submission.id} of run `{run.id}`; submit it again once that is gone."
            )
        time.sleep(_ASK_SECONDS)


if __name__ == "__main__":
    open_standard_streams()
    os.umask(0o077)
    redact_output()
    sys.exit(main(sys.argv[1:]))
