"""Supervisor of a run: ``python -m stackllama_engine.launch.supervisor RUN_DIR ATTEMPT LOCK_FD``.

It detaches itself, holds the run's lock for as long as it lives, starts the command of ``launch.json``, and records
what became of it. Nothing but the lock says that a run is alive, so a supervisor that is killed needs no clean-up.

Shutdown of the worker: :mod:`.shutdown`. Stalls, the disk and the GPUs are monitored too: :mod:`.watch`.
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
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..contract import run_lock
from ..contract.atomic_files import open_private
from ..contract.child_environment import inherited_environment
from ..contract.disk_space import Reserve
from ..contract.errors import ExitCode
from ..contract.events import Event, EventReader
from ..contract.health import Finding, finding_of
from ..contract.redact import redact_output, redactor
from ..contract.requests import forget_all
from ..contract.run_dir import ProcessId, RunDir, State
from ..contract.stages import Stage
from ..contract.streams import open_standard_streams
from . import on_end
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
from .moved_run import MovedDirectory
from .oom import OomWatch
from .processes import descendants, identify, kill_run_processes, run_processes, send
from .ranks import Death, Ranks
from .rendezvous_dir import make_rendezvous_dir, remove_rendezvous_dir, rendezvous_environment
from .scrub import Scrubber, scrub_folder
from .shutdown import Patience, Shutdown
from .state_writer import StateWriter
from .supervisor_log import SUPERVISOR_LOG, drop_empty_log, log_line
from .watch import Watch

if TYPE_CHECKING:
    from .start_after import Turn

_POLL = 0.2
_IN_ORDER = (ExitCode.DONE, ExitCode.STOPPED)  # torchrun prints a traceback for every code but 0


class Supervisor:
    """Runs one attempt to its end."""

    def __init__(self, run: RunDir, attempt: int, patience: Patience) -> None:
        self.run = run
        self.folder = run.attempt_dir(attempt)
        self.patience = patience
        self.stop_requested = False  # set by a signal handler
        self._states = StateWriter(run)
        self._shutdown = Shutdown(patience)
        self._oom = OomWatch()
        self._ranks: Ranks | None = None
        self._reader = EventReader(self.folder / "events.jsonl")
        self._secrets = redactor()
        self._log = Scrubber(self.folder / "log.txt", self._secrets)
        self._end: Event | None = None
        self._watch: Watch | None = None
        self._turn: Turn | None = None
        self._moved = MovedDirectory(run.path)
        self._polled = time.monotonic()
        self._last_event: tuple[float, float] | None = None  # the newest event's time; the poll before it was read
        self._worker_pid = 0
        self._worker: ProcessId | None = None
        self._status: int | None = None
        self._stopping = False
        self._sent: signal.Signals | None = None  # to the processes of the run
        self._forced: signal.Signals | None = None  # to the worker while it still lived
        self._reported_unkillable = False

    @property
    def state(self) -> State:
        """The run's state; on a full disk newer than ``state.json``."""
        return self._states.state

    def supervise(self) -> None:
        """Start the worker, follow it to its end, leave no process of the run behind, record the outcome."""
        self._states.record(supervisor=identify(os.getpid()))
        if not self._wait_for_turn():
            cause = "It was stopped while it waited for its turn; nothing had run."
            outcome = Outcome(phase="stopped", exit_code=ExitCode.STOPPED, cause=cause)
            self._finish(self._moved.stopped(outcome) if self._moved.cause is not None else outcome)
            return
        try:
            self._start_worker()
        except OSError as error:
            self._finish(Outcome(phase="failed", exit_code=1, cause=f"The worker could not be started: {error}."))
            return
        while True:
            self._wait_for_worker()
            self._poll_ranks()
            self._reap()
            self._find_directory()
            self._mask_secrets()
            self._read_events()
            self._monitor()
            self._serve_stop()
            left = self._end_processes()
            if self._status is not None and not left:
                break
        self._read_events()  # what it wrote between the last poll and its end
        self._mask_secrets()
        self._finish(self._outcome(self._status))

    # its turn

    def _wait_for_turn(self) -> bool:
        """Wait where it is to start after another run; return whether it may start."""
        launch = self.run.read_launch()
        if launch.after is None:
            self._states.record(phase="starting")
            return True
        from .start_after import Turn

        turn = Turn(self.run, launch, self.state.stage, self._must_not_start, self._tell_waiting)
        if not turn.wait():
            return False
        self._turn = turn
        self._states.record(phase="starting", waiting=None, started=time.time())
        return True

    def _must_not_start(self) -> bool:
        self._find_directory()
        self._states.retry()
        return self._moved.cause is not None or self.stop_requested or self.run.asked_to_stop()

    def _tell_waiting(self, why: str) -> None:
        self._states.record(phase="queued", waiting=why)

    # the worker

    def _start_worker(self) -> None:
        launch = self.run.read_launch()
        self._watch = Watch(self.run, self.folder, launch, self.state.stage)
        if run_lock.is_by_file(self.run.path):
            self._watch.journal.write(run_lock.BY_FILE)
        world_size = int(launch.environment.get("STACKLLAMA_WORLD_SIZE", "1"))
        environment = inherited_environment() | launch.environment
        if world_size > 1:
            environment |= rendezvous_environment(make_rendezvous_dir(self.folder))
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
        self._states.record(worker=self._worker)

    def _wait_for_worker(self) -> None:
        """Sleep until the next poll, or until the worker or a rank has ended."""
        with contextlib.suppress(ProcessLookupError):
            if self._status is None:
                descriptor = os.pidfd_open(self._worker_pid)
                try:
                    poll = select.poll()
                    watched = self._ranks.descriptors if self._ranks is not None and self._sent is None else ()
                    for each in (descriptor, *watched):  # one that has ended stays readable until it is polled
                        poll.register(each, select.POLLIN)
                    poll.poll(_POLL * 1000)
                finally:
                    os.close(descriptor)
                return
        time.sleep(_POLL / 4)

    def _poll_ranks(self) -> None:
        """Follow the ranks, until this process signals them itself."""
        if self._ranks is None or self._sent is not None:
            return
        try:
            self._ranks.poll(self._worker_pid)
        except OSError as error:
            log_line(f"ranks are no longer monitored ({error}): the cause of a failure may not name a killed rank")
            self._ranks.close()
            self._ranks = None

    def _reap(self) -> None:
        """Reap every child that ended, adopted ones too; keep the worker's status; commands have threads for that."""
        with contextlib.suppress(ChildProcessError), on_end.LOCK:
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if on_end.is_waited_for(ended.si_pid):
                    break  # the others with the next poll
                _, status = os.waitpid(ended.si_pid, 0)
                if ended.si_pid == self._worker_pid:
                    self._status = status

    def _read_events(self) -> None:
        any_event = False
        before, self._polled = self._polled, time.monotonic()
        for event in self._reader.read_what_can_be():
            any_event = True
            if event.kind == "end":
                self._end = event
            if self._turn is not None:
                self._turn.event(event)
            if event.kind == "checkpoint" and self._last_event is not None:
                began, since = self._last_event  # the event before it was the last thing before the save
                passed = self._polled - since  # by the monotonic clock, which nobody sets
                self._shutdown.save_took(min(event.time - began, passed))
            self._last_event = event.time, before
            if event.kind == "health" and (finding := finding_of(event.data)):
                self._record_finding(finding)
            if self._watch is not None:
                self._watch.event(event)
        if any_event and self.state.phase in ("starting", "stalled"):
            self._states.record(phase="running")
        else:
            self._states.retry()

    def _record_finding(self, finding: Finding) -> None:
        """Keep what a health rule found in the state, and tell the person's command of it."""
        others = {rule: text for rule, text in self.state.findings.items() if rule != finding.rule}
        if finding.cleared:
            self._states.record(findings=others)
        else:
            self._states.record(findings=others | {finding.rule: finding.message})
            on_end.run_beside(self.run, self.folder, self.state, finding.message)

    def _find_directory(self) -> None:
        """Follow a renamed directory, and stop the run: its worker knows the old name only."""
        if not self._moved.poll():
            return
        log_line(self._moved.cause or "")
        self.run = RunDir(self._moved.path)
        self._states.run = self.run
        self.folder = self.run.attempt_dir(self.state.attempt)
        self._reader.path, self._log.path = self.folder / "events.jsonl", self.folder / "log.txt"
        self._watch = None  # which reads the old name
        if not self._moved.can_save:
            self._shutdown.kill(time.monotonic())

    def _mask_secrets(self) -> None:
        """Mask secrets in the log as it grows; what was printed at the end is masked before it is quoted."""
        try:
            self._log.scrub()
        except OSError as error:
            log_line(f"log.txt: {error}; secrets printed there may not be masked")

    def _monitor(self) -> None:
        """Poll for stalls, the disk and the GPUs while the worker runs."""
        if self._watch is None or self._status is not None or self._end is not None:
            return
        try:
            self._watch.poll()
        except Exception as error:  # noqa: BLE001 - monitoring must not cost the run
            log_line(f"stalls, disk and GPUs are no longer monitored: {error!r}")
            self._watch = None
            return
        if self._watch.stalled and self.state.phase in ("starting", "running"):
            self._states.record(phase="stalled")
            on_end.run_beside(self.run, self.folder, self.state)

    # ending it

    def _serve_stop(self) -> None:
        must = self._moved.cause is not None or (self._watch is not None and self._watch.stop_cause is not None)
        if self._stopping or not (must or self.stop_requested or "stop" in self.run.requests()):
            return
        self._stopping = True
        now = time.monotonic()
        self._shutdown.stop(now)
        try:
            self.run.request("stop")  # for the worker, when the stop came as a signal
        except OSError as error:  # a full disk: a signal requests the same
            log_line(f"control/stop: {error}; sending SIGTERM instead")
            self._shutdown.terminate(now)
        if self._status is None:
            self._states.record(phase="stopping")

    def _end_processes(self) -> bool:
        """Send the signal that is due; return whether a process of the run may be left."""
        now = time.monotonic()
        if self._status is not None:
            self._shutdown.worker_gone(now, end_written=self._end is not None)
        elif self._end is not None:
            self._shutdown.end_written(now)
        due = self._shutdown.due(now)
        if due is None:
            return True
        left = run_processes(self.run.path)
        if self.state.stage is not Stage.PIPELINE:  # whose children's supervisors are below this one, and live on
            with on_end.LOCK:
                below = [each for each in descendants(os.getpid()) if not on_end.is_of_command(each.pid)]
            left += [process for process in below if process not in left]  # lost the mark
        if self._watch is not None:
            self._watch.remember(left)
        if self._shutdown.is_overdue(now):
            self._report_unkillable(left)
        if due is signal.SIGKILL or self._sent is None:
            self._signal(left, due)
        return bool(left)

    def _report_unkillable(self, left: list[ProcessId]) -> None:
        if left and self._watch is not None and not self._reported_unkillable:
            self._reported_unkillable = True
            pids = ", ".join(str(process.pid) for process in left)
            self._watch.journal.write(
                f"Waiting for pid {pids}: still alive after SIGKILL, blocked in the kernel or a driver."
            )

    def _signal(self, processes: list[ProcessId], number: signal.Signals) -> None:
        for process in processes:
            if send(process, number) and process == self._worker:
                self._forced = number
        self._sent = number

    # the record

    def _outcome(self, status: int) -> Outcome:
        outcome = self._plain_outcome(status)
        if self._moved.cause is not None:
            return self._moved.stopped(outcome)
        killed = self._killed(status) if outcome.phase != "finished" else None
        if killed is not None:  # whatever the other ranks report: they have lost a peer
            code = ExitCode.FAILED if killed.number is None else 128 + killed.number
            outcome = Outcome(phase="failed", exit_code=code, cause=f"{killed}.")
        if outcome.phase == "stopped":
            outcome = msgspec.structs.replace(outcome, cause=self._stop_cause(outcome.cause, status))
        try:
            from .autopsy import explain

            silent = self._end is None
            cause = explain(self.run, self.state, outcome, silent=silent, killer=self._oom.poll(), killed=killed)
        except Exception as error:  # noqa: BLE001 - the outcome counts more than its explanation
            log_line(f"the cause could not be analyzed further: {error!r}")
            return outcome
        if outcome.phase == "failed" and self._watch is not None:
            cause = self._watch.explain(cause or outcome.cause)
        return msgspec.structs.replace(outcome, cause=cause) if cause else outcome

    def _stop_cause(self, reported: str | None, status: int) -> str | None:
        """Return why the run stopped; where somebody requested it, what the worker ``reported``."""
        if self._stopping:
            why = self._watch.stop_cause if self._watch is not None else None
            names_disk = reported is not None and "disk" in reported  # the worker knows more of what it met
            return reported if why is None or names_disk else " ".join(filter(None, (why, reported)))
        if reported is not None:
            return reported
        lines = last_log_lines(self.folder / "log.txt")
        return signal_to_launcher(status, lines, on_resume(self.run, self.state.stage))

    def _killed(self, status: int) -> Death | None:
        """Return the rank whose death by a signal ended the attempt, unless a stop was requested."""
        if self._ranks is None or self._stopping:
            return None
        log = log_end(self.folder / "log.txt")
        if os.WIFSIGNALED(status) or got_signal(log) is not None:  # a signal to the launcher, which ended its ranks
            return None
        return self._ranks.first_killed(log, self.folder, os.waitstatus_to_exitcode(status))

    def _plain_outcome(self, status: int) -> Outcome:
        if self._end is not None:
            return from_end_event(self._end)
        if self._stopping and self._forced is not None:
            return stopped_by_force(self._forced, self.patience.stop, on_resume(self.run, self.state.stage))
        return from_status(status, last_log_lines(self.folder / "log.txt"))

    def _finish(self, outcome: Outcome) -> None:
        if self._turn is not None:
            self._turn.end()
        remove_rendezvous_dir(self.folder)
        if self._watch is not None:
            self._watch.end()
        self._moved.remove_link()
        Reserve(self.run.path).release()  # a worker that was killed did not
        lines = last_log_lines(self.folder / "log.txt") if outcome.exit_code not in _IN_ORDER else []
        with contextlib.suppress(OSError):  # the next attempt clears them before it begins
            forget_all(self.run)
        self._states.record(
            phase=outcome.phase,
            exit_code=int(outcome.exit_code),
            cause=outcome.cause,
            ended=time.time(),
            last_lines=lines,
            waiting=None,
        )
        if outcome.phase == "finished":
            self._calibrate()
        self._states.flush(self._moved.is_gone)

    def _calibrate(self) -> None:
        """Add the measured memory to the home's calibration, which makes later estimates better."""
        try:
            from .calibrate import add_finished

            add_finished(self.run, self.state)
        except Exception as error:  # noqa: BLE001 - the run has finished, and stays so
            log_line(f"the measured memory could not be added to the calibration: {error!r}")


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
        run = supervisor.run  # it may have been renamed
        drop_empty_log(supervisor.folder)
        with contextlib.suppress(OSError):  # a full disk: our own streams were redacted already
            scrub_folder(supervisor.folder, redactor())
        status = 0
    except BaseException as error:  # noqa: BLE001 - nobody else can record anything
        traceback.print_exc()
        _record_own_failure(run, error)
    finally:
        with contextlib.suppress(OSError):
            # closing it would do, but for a thread that a driver holds in the kernel and that holds all files open
            fcntl.flock(lock, fcntl.LOCK_UN)
        with contextlib.suppress(OSError):
            run_lock.release(lock)
        _run_command_of_end(run, attempt)  # the run is free: a command that hangs keeps nobody from resuming it
        os._exit(status)


def _run_command_of_end(run: RunDir, attempt: int) -> None:
    """Run the person's command, if any; the run has ended, and nothing changes that."""
    try:
        state = run.read_state()
        if state.has_ended:
            on_end.run_command(run, run.attempt_dir(attempt), state)
        on_end.wait_beside()
    except Exception:  # noqa: BLE001 - the run has ended, and its record stays
        traceback.print_exc()


def _handle_signals(supervisor: Supervisor) -> None:
    def request_stop(_number: int, _frame: object) -> None:
        supervisor.stop_requested = True

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _record_own_failure(run: RunDir, error: BaseException) -> None:
    try:
        killed = kill_run_processes(run.path)
        cause = (
            f"The supervisor itself failed ({error!r}); {killed} processes of the run were killed. "
            f"Please report this bug and attach {SUPERVISOR_LOG}."
        )
        state = run.read_state()
        if not state.has_ended:
            failed = {"phase": "failed", "exit_code": 1, "cause": cause, "ended": time.time(), "waiting": None}
            run.write_state(msgspec.structs.replace(state, **failed))
    except Exception:  # noqa: BLE001 - nothing is left but the log; the free lock will say `lost`
        traceback.print_exc()


if __name__ == "__main__":
    open_standard_streams()
    redact_output()
    main(sys.argv[1:])
