"""Monitoring of a run besides the worker's end: stalls, disk space, GPUs.

It writes notices to the attempt's ``health.jsonl``; the supervisor acts. Calls that may hang run in a thread
(:mod:`.timeouts`): a stop is served even while a driver hangs.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ..contract.events import Event
from ..contract.gpu_metrics import GPU_FILE
from ..contract.run_dir import Launch, ProcessId, RunDir
from ..contract.stages import Stage
from .activity import Activity
from .disk import DiskWatch
from .gpu_recorder import GpuRecorder
from .gpu_watch import GpuWatch, watched_cards
from .health import Journal
from .processes import run_processes
from .stack_dumps import drop_empty_stacks, write_stacks
from .stall import StallLimits, StallWatch
from .timeouts import Asked, Asker, UnansweredError

_SHORTEST, _LONGEST = 0.2, 5.0  # seconds between two polls
_POLLS = 20  # within the stall limit
_STACKS = 5  # stack dumps per attempt
_MEMORY_SECONDS = 10.0  # a driver needs a moment to free what a killed process held


class Watch:
    """Monitors one attempt.

    Args:
        run: the run.
        folder: the attempt's.
        launch: how it was started.
        stage: a pipeline's coordinator is idle for hours, which is no stall.
        clock: monotonic seconds.

    Attributes:
        stalled: whether the run is stalled.
        stop_cause: why the run must save and stop; None: it need not.
        journal: where notices go.
    """

    def __init__(
        self, run: RunDir, folder: Path, launch: Launch, stage: Stage, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stalled = False
        self.stop_cause: str | None = None
        self.journal = Journal(folder)
        self._run = run
        self._folder = folder
        self._clock = clock
        self._poll_at = 0.0
        self._pids: set[int] = set()
        self._stacks = 0
        self._stacks_asker = Asker("py-spy")
        self._stacks_asked: Asked[Path] | None = None
        self._activity = Activity(clock)
        self._disk = DiskWatch(run, stops=False)
        cards = watched_cards(launch)
        self._coordinates = coordinates = stage is Stage.PIPELINE
        self._gpus = GpuWatch(cards, clock) if not coordinates and cards != () else None
        recorded = any((earlier / GPU_FILE).exists() for earlier in run.attempt_dirs() if earlier.name != folder.name)
        self._recorder = GpuRecorder(folder, clock, step=None if recorded else 0)
        self._stall = None if coordinates else StallWatch(StallLimits.of_environment(), clock)

    def event(self, event: Event) -> None:
        """Take an event of the worker: it is not stalled."""
        self._recorder.event(event)
        if self._stall is not None:
            self._stall.event(event)
        if event.kind == "progress" and not self._coordinates and not self._disk.stops:
            self._disk.stops = True  # it trains, and holds a reserve if it can
            self._poll_at = 0.0
        if event.kind == "checkpoint":
            self._disk.measure_checkpoint()
        if self.stalled:
            self.stalled = False
            self.journal.write("Run resumed progress.")

    def poll(self) -> None:
        """Poll everything, if it is due."""
        now = self._clock()
        if now < self._poll_at:
            return
        limit = self._stall.limit if self._stall is not None else _LONGEST * _POLLS
        self._poll_at = now + min(max(limit / _POLLS, _SHORTEST), _LONGEST)
        for notice in self._gpus.poll() if self._gpus is not None else ():
            self.journal.write(notice)
        self._recorder.poll(self._gpus.gpus if self._gpus is not None else [], self._pids)
        self._poll_disk()
        self._report_stacks()
        if self._stall is not None:
            self._poll_stall(self._stall)

    def remember(self, processes: Iterable[ProcessId]) -> None:
        """Remember processes of the run, whose GPU memory must be free after they have ended."""
        self._pids |= {process.pid for process in processes}

    def explain(self, cause: str | None) -> str | None:
        """Return the cause of a failure, with a GPU error of that time beside it."""
        serious = self._gpus.serious if self._gpus is not None else None
        if serious is None:
            return cause
        return f"{(cause or 'The run failed').removesuffix('.')}. A GPU error was logged at the same time: {serious}"

    def end(self) -> None:
        """Wait, after the last process has ended, until its GPU memory is free; write a notice where it is not."""
        if self._gpus is not None:
            self._wait_for_memory(self._gpus)
        self._recorder.close()
        drop_empty_stacks(self._folder)
        self.journal.close()

    def _wait_for_memory(self, gpus: GpuWatch) -> None:
        """Wait some seconds, but not for a driver that hangs."""
        deadline = self._clock() + _MEMORY_SECONDS
        while (held := gpus.holders()) and (left := held & self._pids):
            if self._clock() >= deadline:
                pids = ", ".join(map(str, sorted(left)))
                self.journal.write(f"GPU memory is still allocated to processes that have ended: pid {pids}.")
                return
            time.sleep(_SHORTEST)

    def _poll_disk(self) -> None:
        notice = self._disk.poll()
        if notice is not None:
            self.journal.write(notice.message)
            if notice.critical:
                self.stop_cause = notice.message

    def _poll_stall(self, stall: StallWatch) -> None:
        processes = run_processes(self._run.path)
        self.remember(processes)
        pids = {process.pid for process in processes}
        idle = self._activity.poll(processes, self._gpus.work(pids) if self._gpus is not None else None)
        why = stall.poll(idle, self._activity.ranks)
        if why is None or self.stalled:
            return
        self.stalled = True
        self.journal.write(f"Run stalled: {why}")
        self._stacks += 1
        if self._stacks <= _STACKS:
            self._write_stacks(processes)

    def _write_stacks(self, processes: list[ProcessId]) -> None:
        """Start a stack dump in a thread: py-spy may hang on a process that hangs."""
        try:
            self._stacks_asked = self._stacks_asker.ask(lambda: write_stacks(self._folder, processes), 0.0)
        except UnansweredError:  # the previous dump is still being written
            return
        self._report_stacks()

    def _report_stacks(self) -> None:
        if self._stacks_asked is None:
            return
        try:
            path = self._stacks_asked.answer()
        except UnansweredError:
            return
        except OSError as error:
            self.journal.write(f"The stack dump could not be written: {error}.")
        else:
            self.journal.write(f"Stack dump: {path.relative_to(self._run.path)}.")
        self._stacks_asked = None
