"""What the supervisor looks at besides the worker's end: whether it stands still, room on the disk, the GPUs.

It finds and tells, in the attempt's ``health.jsonl``; the supervisor acts. What may hang is asked in a thread
(:mod:`.timeouts`): a stop is served whatever becomes of a driver.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ..contract.events import Event
from ..contract.run_dir import Launch, ProcessId, RunDir
from ..contract.stages import Stage
from .activity import Activity
from .disk import DiskWatch
from .gpu_watch import GpuWatch, watched_cards
from .health import Journal
from .processes import run_processes
from .stack_dumps import drop_empty_stacks, write_stacks
from .stall import StallLimits, StallWatch
from .timeouts import Asked, Asker, UnansweredError

_SHORTEST, _LONGEST = 0.2, 5.0  # seconds between two looks
_LOOKS = 20  # within the limit
_STACKS = 5  # an attempt
_MEMORY_SECONDS = 10.0  # a driver needs a moment to free what a killed process held


class Watch:
    """One attempt's.

    Args:
        run: the run.
        folder: the attempt's.
        launch: how it was started.
        stage: a pipeline's coordinator does nothing for hours, and is not asked to.
        clock: monotonic seconds.

    Attributes:
        stalled: whether the run stands still.
        stop_cause: why it has to be saved and stopped; None: it has not.
        journal: where remarks go.
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
        self._look_at = 0.0
        self._seen: set[int] = set()
        self._stacks = 0
        self._stacks_asker = Asker("py-spy")
        self._stacks_asked: Asked[Path] | None = None
        self._activity = Activity(clock)
        self._disk = DiskWatch(run, stops=False)
        cards = watched_cards(launch)
        self._coordinates = coordinates = stage is Stage.PIPELINE
        self._gpus = GpuWatch(cards, clock) if not coordinates and cards != () else None
        self._stall = None if coordinates else StallWatch(StallLimits.of_environment(), clock)

    def event(self, event: Event) -> None:
        """The worker said something: it does not stand still."""
        if self._stall is not None:
            self._stall.event(event)
        if event.kind == "progress" and not self._coordinates and not self._disk.stops:
            self._disk.stops = True  # it trains, and holds a reserve if it can
            self._look_at = 0.0
        if event.kind == "checkpoint":
            self._disk.measure_checkpoint()
        if self.stalled:
            self.stalled = False
            self.journal.write("It goes on.")

    def look(self) -> None:
        """Look at everything, if it is time to."""
        now = self._clock()
        if now < self._look_at:
            return
        limit = self._stall.limit if self._stall is not None else _LONGEST * _LOOKS
        self._look_at = now + min(max(limit / _LOOKS, _SHORTEST), _LONGEST)
        for remark in self._gpus.look() if self._gpus is not None else ():
            self.journal.write(remark)
        self._look_at_disk()
        self._tell_stacks()
        if self._stall is not None:
            self._look_for_stall(self._stall)

    def saw(self, processes: Iterable[ProcessId]) -> None:
        """Processes of the run, whose GPU memory must be free when they have gone."""
        self._seen |= {process.pid for process in processes}

    def explain(self, cause: str | None) -> str | None:
        """The cause of a failure, with the GPU's trouble in the meantime beside it."""
        serious = self._gpus.serious if self._gpus is not None else None
        if serious is None:
            return cause
        return f"{cause or 'It failed.'} Meanwhile: {serious} That is no fault of the run."

    def end(self) -> None:
        """After the last process has gone: wait until the GPUs' memory is free again, and say so where it is not."""
        if self._gpus is not None:
            self._wait_for_memory(self._gpus)
        drop_empty_stacks(self._folder)
        self.journal.close()

    def _wait_for_memory(self, gpus: GpuWatch) -> None:
        """Not for a driver that hangs: what it holds, nobody can tell."""
        deadline = self._clock() + _MEMORY_SECONDS
        while (held := gpus.holders()) and (left := held & self._seen):
            if self._clock() >= deadline:
                pids = ", ".join(map(str, sorted(left)))
                self.journal.write(f"The driver still holds GPU memory for processes that have ended: pid {pids}.")
                return
            time.sleep(_SHORTEST)

    def _look_at_disk(self) -> None:
        news = self._disk.look()
        if news is not None:
            self.journal.write(news.message)
            if news.critical:
                self.stop_cause = news.message

    def _look_for_stall(self, stall: StallWatch) -> None:
        processes = run_processes(self._run.path)
        self.saw(processes)
        pids = {process.pid for process in processes}
        idle = self._activity.look(processes, self._gpus.work(pids) if self._gpus is not None else None)
        why = stall.look(idle, self._activity.ranks)
        if why is None or self.stalled:
            return
        self.stalled = True
        self.journal.write(f"It stands still. {why}")
        self._stacks += 1
        if self._stacks <= _STACKS:
            self._write_stacks(processes)

    def _write_stacks(self, processes: list[ProcessId]) -> None:
        """Begin to; a debugger may hang on a process that hangs, and the supervisor has a run to end."""
        try:
            self._stacks_asked = self._stacks_asker.ask(lambda: write_stacks(self._folder, processes), 0.0)
        except UnansweredError:  # those of the stall before are still being written
            return
        self._tell_stacks()

    def _tell_stacks(self) -> None:
        if self._stacks_asked is None:
            return
        try:
            path = self._stacks_asked.answer()
        except UnansweredError:
            return
        except OSError as error:
            self.journal.write(f"Its stacks could not be written: {error}.")
        else:
            self.journal.write(f"Its stacks: {path.relative_to(self._run.path)}.")
        self._stacks_asked = None
