"""The one process that watches a run: ``python -m stackllama_engine.launch.supervisor RUN_DIR ATTEMPT LOCK_FD``.

It detaches itself, holds the run's lock for as long as it lives, starts the command of ``launch.json``, and records
what became of it. Nothing but the lock says that a run is alive, so a supervisor that is killed needs no clean-up.

How a worker is brought to an end::

    stop requested      ── grace ──►  SIGTERM  ── term ──►  SIGKILL    (``control/stop``, or SIGTERM to the supervisor)
    worker gone, no end             ► SIGTERM  ── term ──►  SIGKILL    (its processes may outlive `accelerate launch`)
    worker gone, end written                                SIGKILL
    end written, worker not gone    ── linger ───────────►  SIGKILL    (hangs while it exits)

``STACKLLAMA_STOP_GRACE``, ``STACKLLAMA_TERM_GRACE`` and ``STACKLLAMA_LINGER`` (seconds) set the three; the first two
are never shorter than three times the longest save of the attempt. Besides it looks for stalls, at the disk and at the
GPUs (:mod:`.watch`).
"""

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from math import inf
from pathlib import Path

import msgspec
from msgspec import Struct

from ..contract import run_lock
from ..contract.atomic_files import open_private
from ..contract.child_environment import inherited_environment
from ..contract.disk_space import Reserve
from ..contract.errors import ExitCode
from ..contract.events import Event, EventReader
from ..contract.redact import redact_output, redactor
from ..contract.requests import forget_all
from ..contract.run_dir import ProcessId, RunDir, State
from ..contract.stages import Stage
from ..contract.streams import open_standard_streams
from .attempt_outcome import (
    Outcome,
    from_end_event,
    from_status,
    got_signal,
    last_log_lines,
    log_end,
    on_resume,
    signal_to_launcher,
    stopped_by_force,
)
from .detach import adopt_orphans, detach
from .env_settings import setting
from .moved_run import Renamed
from .oom import OomWatch
from .processes import descendants, identify, kill_run_processes, run_processes, send
from .ranks import Death, Ranks
from .rendezvous_dir import make_meeting_place, meeting_environment, remove_meeting_place
from .scrub import Scrubber, scrub_folder
from .watch import Watch

SUPERVISOR_LOG = "supervisor.txt"
"""In the attempt's folder: what the supervisor itself had to complain about."""

_POLL = 0.2
_IN_ORDER = (ExitCode.DONE, ExitCode.STOPPED)  # torchrun prints a traceback for every code but 0
_SAVES = 3  # a grace is at least so many times the longest save
_LONGEST_GRACE = 1800.0  # seconds that a run's own saves may ask for
_UNKILLABLE = 10.0  # seconds after which a process that survives SIGKILL is worth a remark
_DISK_PATIENCE = 600.0  # seconds to go on trying to record the outcome on a full disk


class Patience(Struct, frozen=True, kw_only=True):
    """Seconds that a worker is given; see the module."""

    stop: float = 120.0
    term: float = 30.0
    linger: float = 60.0

    @classmethod
    def of(cls, stage: Stage) -> "Patience":
        """From the environment. A pipeline waits for the supervisor of its child, which waits for its worker."""
        names = {"stop": "STACKLLAMA_STOP_GRACE", "term": "STACKLLAMA_TERM_GRACE", "linger": "STACKLLAMA_LINGER"}
        found = {field: setting(name) for field, name in names.items()}
        given = cls(**{field: value for field, value in found.items() if value is not None})
        if stage is Stage.PIPELINE:
            return msgspec.structs.replace(given, stop=2 * (given.stop + given.term))
        return given


class Supervisor:
    """Runs one attempt to its end."""

    def __init__(self, run: RunDir, attempt: int, patience: Patience) -> None:
        self.run = run
        self.folder = run.attempt_dir(attempt)
        self.patience = patience
        self.stop_asked = False  # set by a signal handler
        self.state: State = run.read_state()
        self._unsaved = False
        self._oom = OomWatch()
        self._ranks: Ranks | None = None
        self._reader = EventReader(self.folder / "events.jsonl")
        self._secrets = redactor()
        self._log = Scrubber(self.folder / "log.txt", self._secrets)
        self._end: Event | None = None
        self._watch: Watch | None = None
        self._renamed = Renamed(run.path)
        self._looked = time.monotonic()
        self._heard: tuple[float, float] | None = None  # the newest event's time; the look before it was heard
        self._longest_save = 0.0
        self._worker_pid = 0
        self._worker: ProcessId | None = None
        self._status: int | None = None
        self._term_at = self._kill_at = inf  # monotonic seconds
        self._stopping = False
        self._sent: signal.Signals | None = None  # to the processes of the run
        self._forced: signal.Signals | None = None  # to the worker while it still lived
        self._told_unkillable = False

    def supervise(self) -> None:
        """Start the worker, follow it to its end, leave no process of the run behind, record the outcome."""
        self._record(phase="starting", supervisor=identify(os.getpid()))
        try:
            self._start_worker()
        except OSError as error:
            self._finish(Outcome(phase="failed", exit_code=1, cause=f"The worker could not be started: {error}."))
            return
        while True:
            self._wait_for_worker()
            self._look_at_ranks()
            self._reap()
            self._find_directory()
            self._mask_secrets()
            self._read_events()
            self._look()
            self._serve_stop()
            left = self._end_processes()
            if self._status is not None and not left:
                break
        self._read_events()  # what it wrote between the last look and its end
        self._mask_secrets()
        self._finish(self._outcome(self._status))

    # the worker

    def _start_worker(self) -> None:
        launch = self.run.read_launch()
        self._watch = Watch(self.run, self.folder, launch, self.state.stage)
        if run_lock.is_by_file(self.run.path):
            self._watch.journal.write(run_lock.BY_FILE)
        world_size = int(launch.environment.get("STACKLLAMA_WORLD_SIZE", "1"))
        environment = inherited_environment() | launch.environment
        if world_size > 1:
            environment |= meeting_environment(make_meeting_place(self.folder))
        if self.state.stage is not Stage.PIPELINE:
            self._ranks = Ranks(self.run.path, world_size)
        log = open_private(self.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            process = subprocess.Popen(
                launch.argv,
                cwd=launch.cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)
        process.returncode = 0  # reaped here with everything else, not by subprocess
        self._worker_pid = process.pid
        self._worker = identify(process.pid)
        self._record(worker=self._worker)

    def _wait_for_worker(self) -> None:
        """Sleep until the next look, or until the worker or a rank has ended."""
        with contextlib.suppress(ProcessLookupError):
            if self._status is None:
                descriptor = os.pidfd_open(self._worker_pid)
                try:
                    poll = select.poll()
                    watched = self._ranks.descriptors if self._ranks is not None and self._sent is None else ()
                    for each in (descriptor, *watched):  # one that has ended stays readable until it is looked at
                        poll.register(each, select.POLLIN)
                    poll.poll(_POLL * 1000)
                finally:
                    os.close(descriptor)
                return
        time.sleep(_POLL / 4)

    def _look_at_ranks(self) -> None:
        """Until this process signals them itself, whoever vanishes did not by its hand."""
        if self._ranks is None or self._sent is not None:
            return
        try:
            self._ranks.look(self._worker_pid)
        except OSError as error:
            _note(f"the ranks are no longer watched: {error}; a killed one may go unnamed")
            self._ranks.close()
            self._ranks = None

    def _reap(self) -> None:
        """Collect every child that ended, adopted ones too; keep the worker's status."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                pid, status = ended
                if pid == self._worker_pid:
                    self._status = status

    def _read_events(self) -> None:
        seen = False
        before, self._looked = self._looked, time.monotonic()
        for event in self._reader.read_what_can_be():
            seen = True
            if event.kind == "end":
                self._end = event
            if event.kind == "checkpoint" and self._heard is not None:
                began, since = self._heard  # the event before it was the last thing before the save
                passed = self._looked - since  # by this clock, which nobody sets meanwhile
                self._longest_save = max(self._longest_save, min(event.time - began, passed))
            self._heard = event.time, before
            if self._watch is not None:
                self._watch.event(event)
        if seen and self.state.phase in ("starting", "stalled"):
            self._record(phase="running")
        elif self._unsaved:
            self._record()

    def _find_directory(self) -> None:
        """Go on in the directory under its new name, and bring the run to an end: the worker knows the old one."""
        if not self._renamed.look():
            return
        _note(self._renamed.cause or "")
        self.run = RunDir(self._renamed.path)
        self.folder = self.run.attempt_dir(self.state.attempt)
        self._reader.path, self._log.path = self.folder / "events.jsonl", self.folder / "log.txt"
        self._watch = None  # which looks at the old name
        if not self._renamed.can_save:
            self._term_at = self._kill_at = time.monotonic()

    def _mask_secrets(self) -> None:
        """In the log as it grows; what was printed at the end is masked before it is quoted."""
        try:
            self._log.scrub()
        except OSError as error:
            _note(f"log.txt: {error}; it may hold a secret that was printed")

    def _look(self) -> None:
        """At everything that is not the worker's end."""
        if self._watch is None or self._status is not None or self._end is not None:
            return
        try:
            self._watch.look()
        except Exception as error:  # noqa: BLE001 - what is only looked at must not cost the run
            _note(f"the run is no longer watched for stalls, disk and GPUs: {error!r}")
            self._watch = None
            return
        if self._watch.stalled and self.state.phase in ("starting", "running"):
            self._record(phase="stalled")

    # ending it

    def _serve_stop(self) -> None:
        must = self._renamed.cause is not None or (self._watch is not None and self._watch.stop_cause is not None)
        if self._stopping or not (must or self.stop_asked or "stop" in self.run.requests()):
            return
        self._stopping = True
        now = time.monotonic()
        self._term_at = min(self._term_at, now + self._grace(self.patience.stop))
        self._kill_at = min(self._kill_at, self._term_at + self._grace(self.patience.term))
        try:
            self.run.request("stop")  # for the worker, when the stop came as a signal
        except OSError as error:  # a full disk: a signal says the same
            _note(f"control/stop: {error}; SIGTERM instead")
            self._term_at = now
        if self._status is None:
            self._record(phase="stopping")

    def _end_processes(self) -> bool:
        """Signal what is due; whether any process of the run is left once the worker has gone."""
        now = time.monotonic()
        if self._status is not None:
            over = self._end is not None
            self._term_at = min(self._term_at, now)
            self._kill_at = min(self._kill_at, now if over else now + self._grace(self.patience.term))
        elif self._end is not None:
            self._kill_at = min(self._kill_at, now + self.patience.linger)
        if now < min(self._term_at, self._kill_at):
            return True
        left = run_processes(self.run.path)
        if self.state.stage is not Stage.PIPELINE:  # whose children's supervisors are below this one, and live on
            left += [process for process in descendants(os.getpid()) if process not in left]  # lost the mark
        if self._watch is not None:
            self._watch.saw(left)
        if now >= self._kill_at + _UNKILLABLE:
            self._tell_unkillable(left)
        if now >= self._kill_at:
            self._signal(left, signal.SIGKILL)
        elif self._sent is None:
            self._signal(left, signal.SIGTERM)
        return bool(left)

    def _grace(self, least: float) -> float:
        """Seconds; long enough for a save as this run has shown to need."""
        return max(least, min(_SAVES * self._longest_save, _LONGEST_GRACE))

    def _tell_unkillable(self, left: list[ProcessId]) -> None:
        if left and self._watch is not None and not self._told_unkillable:
            self._told_unkillable = True
            pids = ", ".join(str(process.pid) for process in left)
            self._watch.journal.write(f"SIGKILL does not end pid {pids}: the kernel or a driver holds it. Waiting.")

    def _signal(self, processes: list[ProcessId], number: signal.Signals) -> None:
        for process in processes:
            if send(process, number) and process == self._worker:
                self._forced = number
        self._sent = number

    # the record

    def _outcome(self, status: int) -> Outcome:
        outcome = self._plain_outcome(status)
        if self._renamed.cause is not None:
            return self._renamed.stopped(outcome)
        killed = self._killed(status) if outcome.phase != "finished" else None
        if killed is not None:  # whatever the others said of it: they have lost a peer
            code = ExitCode.FAILED if killed.number is None else 128 + killed.number
            outcome = Outcome(phase="failed", exit_code=code, cause=f"{killed}.")
        if outcome.phase == "stopped":
            outcome = msgspec.structs.replace(outcome, cause=self._why_stopped(outcome.cause, status))
        try:
            from .autopsy import explain

            silent = self._end is None
            cause = explain(self.run, self.state, outcome, silent=silent, killer=self._oom.look(), killed=killed)
        except Exception as error:  # noqa: BLE001 - what is known of the end counts more than its explanation
            _note(f"how the run ended could not be explained further: {error!r}")
            return outcome
        if outcome.phase == "failed" and self._watch is not None:
            cause = self._watch.explain(cause or outcome.cause)
        return msgspec.structs.replace(outcome, cause=cause) if cause else outcome

    def _why_stopped(self, said: str | None, status: int) -> str | None:
        """Of a stop that nobody asked for in `control/`; what was ``said`` of the end where somebody did."""
        if self._stopping:
            why = self._watch.stop_cause if self._watch is not None else None
            names_it = said is not None and "disk" in said  # the worker knows more of what it met
            return said if why is None or names_it else " ".join(filter(None, (why, said)))
        if said is not None:
            return said
        lines = last_log_lines(self.folder / "log.txt")
        return signal_to_launcher(status, lines, on_resume(self.run, self.state.stage))

    def _killed(self, status: int) -> Death | None:
        """The rank whose death by a signal ended the attempt, which was not asked to stop."""
        if self._ranks is None or self._stopping:
            return None
        log = log_end(self.folder / "log.txt")
        if os.WIFSIGNALED(status) or got_signal(log) is not None:  # the launcher was told to end, and ended its ranks
            return None
        return self._ranks.first_killed(log, self.folder, os.waitstatus_to_exitcode(status))

    def _plain_outcome(self, status: int) -> Outcome:
        if self._end is not None:
            return from_end_event(self._end)
        if self._stopping and self._forced is not None:
            return stopped_by_force(self._forced, self.patience.stop, on_resume(self.run, self.state.stage))
        return from_status(status, last_log_lines(self.folder / "log.txt"))

    def _finish(self, outcome: Outcome) -> None:
        remove_meeting_place(self.folder)
        if self._watch is not None:
            self._watch.end()
        self._renamed.remove_link()
        Reserve(self.run.path).release()  # of a worker that did not come to it
        lines = last_log_lines(self.folder / "log.txt") if outcome.exit_code not in _IN_ORDER else []
        with contextlib.suppress(OSError):  # the next attempt forgets them before it begins
            forget_all(self.run)
        self._record(
            phase=outcome.phase,
            exit_code=int(outcome.exit_code),
            cause=outcome.cause,
            ended=time.time(),
            last_lines=lines,
        )
        if outcome.phase == "finished":
            self._remember()
        deadline = time.monotonic() + _DISK_PATIENCE
        while self._unsaved and not self._renamed.is_gone and time.monotonic() < deadline:
            time.sleep(_POLL)
            self._record()

    def _remember(self) -> None:
        """What it took in memory makes later estimates better."""
        try:
            from .calibrate import add_finished

            add_finished(self.run, self.state)
        except Exception as error:  # noqa: BLE001 - the run has finished, and stays so
            _note(f"what the run took in memory is not remembered: {error!r}")

    def _record(self, **changes: object) -> None:
        """Change the state; on a full disk it is kept and written at the next look."""
        self.state = msgspec.structs.replace(self.state, **changes)
        try:
            self.run.write_state(self.state)
        except OSError as error:
            if not self._unsaved:
                _note(f"state.json: {error}; trying again until it can be written")
            self._unsaved = True
        else:
            self._unsaved = False
            self._keep_spare()

    def _keep_spare(self) -> None:
        """Room for the next state, which a full disk would not take."""
        with contextlib.suppress(OSError):  # there is none now: at the next change of the state
            if self.state.has_ended:
                self.run.drop_spare_state()
            else:
                self.run.keep_spare_state()


def main(arguments: list[str]) -> None:
    """Detach, then supervise. Does not return."""
    run, attempt, lock = RunDir(Path(arguments[0])), int(arguments[1]), int(arguments[2])
    lock = detach(lambda: run_lock.take_over(run.path, lock))
    adopt_orphans()
    status = 1
    try:
        supervisor = Supervisor(run, attempt, Patience.of(run.read_state().stage))
        _handle_signals(supervisor)
        supervisor.supervise()
        _drop_empty(supervisor.folder / SUPERVISOR_LOG)
        with contextlib.suppress(OSError):  # a full disk: the streams were redacted, only foreign bytes are left
            scrub_folder(supervisor.folder, redactor())
        status = 0
    except BaseException as error:  # noqa: BLE001 - the last one who can still record anything
        traceback.print_exc()
        _record_own_failure(run, error)
    finally:
        with contextlib.suppress(OSError):
            # closing it would do, but for a thread that a driver holds in the kernel and that holds all files open
            fcntl.flock(lock, fcntl.LOCK_UN)
        with contextlib.suppress(OSError):
            run_lock.release(lock)
        os._exit(status)


def _handle_signals(supervisor: Supervisor) -> None:
    def ask(_number: int, _frame: object) -> None:
        supervisor.stop_asked = True

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _record_own_failure(run: RunDir, error: BaseException) -> None:
    try:
        killed = kill_run_processes(run.path)
        cause = (
            f"The supervisor itself failed ({error!r}); {killed} processes were ended. Please report {SUPERVISOR_LOG}."
        )
        state = run.read_state()
        if not state.has_ended:
            run.write_state(msgspec.structs.replace(state, phase="failed", exit_code=1, cause=cause, ended=time.time()))
    except Exception:  # noqa: BLE001 - nothing is left but the log; the free lock will say `lost`
        traceback.print_exc()


def _drop_empty(log: Path) -> None:
    if log.is_file() and log.stat().st_size == 0:
        log.unlink()


def _note(text: str) -> None:
    """A line into ``supervisor.txt``, the standard error of this process, if the disk has room for it."""
    with contextlib.suppress(OSError):
        os.write(2, f"{time.strftime('%F %T')} {text}\n".encode())


if __name__ == "__main__":
    open_standard_streams()
    redact_output()
    main(sys.argv[1:])
