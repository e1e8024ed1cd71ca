"""The machine that an unfinished run is on. Of a run on another machine only the files are visible.

Its lock may be known to that machine alone, its processes are, and the clocks differ. So from here it can be monitored
and asked to stop, but is never marked lost, resumed or deleted, unless the user declares the machine gone for good.
"""

import shlex
import socket
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from ..contract import run_lock
from ..contract.errors import DamagedError, RefusedError, UsageError
from ..contract.events import EventReader
from ..contract.host import Host
from ..contract.run_dir import HEALTH_FILE, RunDir, State
from .slurm_queue import job_of

UNKNOWN_HOST = "an unknown host"
SILENCE = 300.0
"""Seconds without a changed file after which waiting for another machine ends."""

_PROGRAM = "stackllama-console"


class Elsewhere(Struct, frozen=True, kw_only=True):
    """Another machine that a run is on.

    Attributes:
        host: its name.
        last_sign: Unix seconds by the file server's clock, or by that machine's: when a file of the run last changed.
    """

    host: str
    last_sign: float | None

    def age(self, now: float) -> float | None:
        """Return seconds since the last sign of life; None where the clocks disagree, or there never was one."""
        seconds = None if self.last_sign is None else now - self.last_sign
        return seconds if seconds is not None and seconds >= 0.0 else None


class Silence:
    """Time without a sign of life of another machine, by the waiting process's clock.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sign: float | None = None
        self._since = clock()

    def too_long(self, run: RunDir, state: State | None) -> bool:
        """Return whether to stop waiting; never for a run on this machine, whose supervisor is visible.

        ``state``: None where a record of the run cannot be read.
        """
        there = elsewhere_of_damaged(run) if state is None else elsewhere(run, state)
        if there is None or there.last_sign != self._sign:
            self._sign = there.last_sign if there is not None else None
            self._since = self._clock()
        return self._clock() - self._since > SILENCE


def elsewhere(run: RunDir, state: State) -> Elsewhere | None:
    """Return the other machine that a run is on, or the other container of this one where there is no flock.

    None for a run that has ended, is here, or waits in Slurm's queue.
    """
    if state.has_ended or _waits_in_slurm(run, state):
        return None
    host = host_of(run, state)
    hosts = [host.name] if host is not None and host.is_elsewhere else run_lock.hosts_out_of_sight(run.path)
    return Elsewhere(host=hosts[0], last_sign=last_sign(run, state)) if hosts else None


def elsewhere_of_damaged(run: RunDir) -> Elsewhere | None:
    """Return :func:`elsewhere` for a run that may have unreadable records; without a state, by ``launch.json``.

    None also where the newest attempt wrote its ``end`` event.
    """
    try:
        return elsewhere(run, run.read_state())
    except DamagedError:
        folder = next(reversed(run.attempt_dirs()), None)
    hosts = run_lock.hosts_out_of_sight(run.path)
    if not hosts and (folder is None or not _wrote_its_end(folder)):
        hosts = _started_elsewhere(run)
    return Elsewhere(host=hosts[0], last_sign=_last_change(run, folder)) if hosts else None


def host_of(run: RunDir, state: State) -> Host | None:
    """Return the machine that created an unfinished run, or started its newest attempt; None if unknown.

    For a run of a version before 0.2 it is known once it had a supervisor, which recorded the boot id; its launcher
    recorded the host name.
    """
    if state.host is not None or state.supervisor is None:
        return state.host
    try:
        name = run.read_launch().host
    except UsageError:
        name = UNKNOWN_HOST
    return Host(name=name, boot_id=state.supervisor.boot_id)


def last_sign(run: RunDir, state: State) -> float | None:
    """Return when a file that the run writes last changed, in Unix seconds of the clock that stamps it."""
    return _last_change(run, run.attempt_dir(state.attempt))


def refuse_elsewhere(run: RunDir, there: Elsewhere, verb: str) -> RefusedError:
    """Return the error of resuming or deleting a run on another machine, with the ways out."""
    return RefusedError(
        f"Run `{run.id}` is alive on {there.host}, as far as can be told from here: it can be monitored and stopped "
        f"(`{_PROGRAM} runs stop {run.id}`); do the rest on {there.host}. If that machine is gone for good: "
        f"`{gone_command(run, there, verb)}`."
    )


def gone_command(run: RunDir, there: Elsewhere, verb: str) -> str:
    """Return the command that resumes or deletes a run of a machine that is gone for good."""
    return f"{_PROGRAM} runs {verb} {run.id} --host-gone {shlex.quote(there.host)}"


def check_gone(run: RunDir, state: State, host_gone: str | None) -> bool:
    """Return whether the machine that a run is on was declared gone.

    Raises:
        UsageError: another one was named.
    """
    return is_gone(run, elsewhere(run, state), host_gone)


def is_gone(run: RunDir, there: Elsewhere | None, host_gone: str | None) -> bool:
    """Return :func:`check_gone` for a machine that is known already.

    Raises:
        UsageError: as there.
    """
    if host_gone is None or there is None:
        return False
    if there.host != host_gone:
        raise UsageError(f"--host-gone {host_gone}: run `{run.id}` is on {there.host}.")
    return True


def _waits_in_slurm(run: RunDir, state: State) -> bool:
    try:
        return state.phase == "queued" and job_of(run) is not None
    except UsageError:
        return False


def _started_elsewhere(run: RunDir) -> list[str]:
    try:
        host = run.read_launch().host
    except DamagedError:
        return []
    return [host] if host != socket.gethostname() else []


def _wrote_its_end(attempt: Path) -> bool:
    return any(event.kind == "end" for event in EventReader(attempt / "events.jsonl").read_what_can_be())


def _last_change(run: RunDir, attempt: Path | None) -> float | None:
    files = [run.path / "state.json"]
    if attempt is not None:
        files += [attempt / name for name in ("events.jsonl", "log.txt", HEALTH_FILE)]
    return max((time for path in files if (time := _changed(path)) is not None), default=None)


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
