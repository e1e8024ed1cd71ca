"""The Slurm job of a run, and whether Slurm still has it; needed for a run whose lock is free.

A run that waits in Slurm's queue has no supervisor yet, and one that computes on another node may hold a lock that
this node's file system does not see: neither is lost as long as its job is in the queue.
"""

import os
import shutil
import subprocess
import threading
import time
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from ..contract.errors import UsageError
from ..contract.host import Host
from ..contract.run_dir import RunDir, State
from ..contract.times import UnixTime
from .timeouts import Asker, UnansweredError

SLURM_FILE = "slurm.json"
_ASK_AGAIN_MISSING = 2.0  # about a job that was not there
_ASK_AGAIN = 30.0  # seconds; screens poll every second, and a cluster has many of them
_TIMEOUT = 10.0
_SQUEUE = Asker("squeue")
_JUST_NOW = 10.0  # seconds since a submission


class Job(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``slurm.json``: the job of a run.

    Attributes:
        id: empty between the run's creation and sbatch's answer.
        submitted: Unix seconds.
        host: where and when it was submitted; None in files of before 0.2.
        options: sbatch's, as the person gave them; None in files of before 0.2.
    """

    id: Annotated[str, Meta(pattern=r"^[0-9A-Za-z_.+\[\]-]{0,64}$")]
    """It becomes an argument of Slurm's commands."""
    submitted: UnixTime
    host: Host | None = None
    options: dict[str, str] | None = None


def job_of(run: RunDir) -> Job | None:
    """Return the Slurm job of a run, or None.

    Raises:
        DamagedError: ``slurm.json`` cannot be read.
    """
    record = run.read_json(SLURM_FILE)
    try:
        return msgspec.convert(record, Job) if record else None
    except msgspec.ValidationError as error:
        raise run.damaged(SLURM_FILE, str(error)) from None


def write_job(run: RunDir, job: Job) -> None:
    """Replace ``slurm.json``."""
    run.write_json(SLURM_FILE, msgspec.to_builtins(job))


def tool(name: str) -> str | None:
    """Return the path of one of Slurm's commands, if it is here."""
    return shutil.which(name)


def is_inside(job: Job) -> bool:
    """Return whether this process is of that job: there the run's lock alone decides."""
    return bool(job.id) and job.id == os.environ.get("SLURM_JOB_ID")


def in_slurm(job: Job) -> bool:
    """Return whether Slurm has a job, waiting or running.

    Where Slurm cannot be asked the answer is yes: a run is not called lost without evidence.
    """
    if not job.id:  # sbatch was not back yet
        return job.host is not None and (job.host.is_elsewhere or job.host.within(_TIMEOUT))
    if job.host is not None and job.host.within(_JUST_NOW):  # squeue may have been asked before
        return True
    jobs = _queue.jobs(job.id)
    return jobs is None or job.id in jobs


def cancel(run: RunDir, state: State) -> State:
    """Take a run that waits out of Slurm's queue.

    Returns:
        the state now: stopped; as it was when the run is no Slurm job or does not wait any more.
    """
    if state.phase != "queued":  # first: a file that cannot be read hinders nobody from stopping what runs
        return state
    job = job_of(run)
    if job is None or not job.id or not tool("scancel"):
        return state
    lock = run.acquire_lock()
    try:
        state = run.read_state()
        if state.phase == "queued":
            argv = ["scancel", job.id]
            subprocess.run(argv, check=True, timeout=_TIMEOUT, capture_output=True)
            state = msgspec.structs.replace(
                state, phase="stopped", cause=f"Slurm job {job.id} was cancelled before it started.", ended=time.time()
            )
            run.write_state(state)
        return state
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(f"Slurm job {job.id} could not be cancelled: {error}.") from None
    finally:
        run.release_lock(lock)


def has_job(job: str) -> bool:
    """Ask Slurm now whether it has a job; yes where it cannot be asked."""
    jobs = _ask()
    return jobs is None or job in jobs


class _Queue:
    """This user's jobs, all asked for at once: a list of many runs costs one squeue, and one wait where it hangs."""

    def __init__(self) -> None:
        self._jobs: set[str] | None = None
        self._asked = -_ASK_AGAIN
        self._lock = threading.Lock()

    def jobs(self, wanted: str) -> set[str] | None:
        """Return the ids of jobs that wait or run; None where Slurm cannot be asked.

        Args:
            wanted: a job that may be newer than the last answer, which is then asked for again sooner.
        """
        with self._lock:
            missing = self._jobs is not None and wanted not in self._jobs
            if time.monotonic() - self._asked >= (_ASK_AGAIN_MISSING if missing else _ASK_AGAIN):
                self._jobs = _ask()
                self._asked = time.monotonic()
            return self._jobs


def _ask() -> set[str] | None:
    argv = ["squeue", "--noheader", f"--user={os.getuid()}", "--format=%i"]

    def ask() -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_TIMEOUT)

    try:  # one that the kernel holds is not ended by its time limit
        done = _SQUEUE.answer(ask, _TIMEOUT + 1.0)
    except (OSError, subprocess.TimeoutExpired, UnansweredError):  # no squeue here, or it does not answer
        return None
    return set(done.stdout.split()) if done.returncode == 0 else None


_queue = _Queue()
