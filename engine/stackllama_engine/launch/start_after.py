"""A run's wait for its turn: until another run has ended, and its GPUs have room for it.

The supervisor waits, so that it outlives the terminal and a logout, holds the run's lock and can be asked to stop. Runs
of one home that have room take turns: the first one holds ``queue.lock`` until it has done its first step (a pipeline:
until it has ended), because memory that a run is going to take looks free until then.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable

from ..contract.atomic_files import open_private
from ..contract.children import children_of
from ..contract.errors import RefusedError, UsageError
from ..contract.events import Event
from ..contract.run_dir import Home, Launch, RunDir
from ..contract.stages import Stage
from .gpu_room import Need, need_of, no_room
from .reconcile import reconcile
from .supervisor_log import log_line

TURN_FILE = "queue.lock"
"""In the home: held by the run whose turn it is."""
_POLL = 0.2
_LOOK_SECONDS = 2.0  # between two looks at the other run and at the GPUs


class Turn:
    """The wait of one run.

    Args:
        run: the run that waits.
        launch: how it will be started.
        stage: its own.
        stopped: whether it is not to start any more.
        tell: takes what it waits for, in words, whenever that changes.
    """

    def __init__(
        self, run: RunDir, launch: Launch, stage: Stage, stopped: Callable[[], bool], tell: Callable[[str], None]
    ) -> None:
        self._after = Home(run.path.parents[1]).runs_dir / str(launch.after)
        self._home = run.path.parents[1]
        self._stopped = stopped
        self._tell = tell
        self._stage = stage
        self._lock: int | None = None
        self._told = ""
        self._need = _need(run, launch, stage)

    def wait(self) -> bool:
        """Wait; return whether the run may start, False where it was asked to stop."""
        look_at = 0.0
        while not self._stopped():
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + _LOOK_SECONDS
                why = self._why_not_yet()
                if not why:
                    return True
                if why != self._told:
                    self._told = why
                    self._tell(why)
            time.sleep(_POLL)
        self.end()
        return False

    def event(self, event: Event) -> None:
        """End the turn with the first step that the worker has done: it has the memory that it needs.

        A pipeline's coordinator counts stages, and each stage takes memory of its own.
        """
        if event.kind == "progress" and (event.step or 0) >= 1 and self._stage is not Stage.PIPELINE:
            self.end()

    def end(self) -> None:
        """Let the next run have its turn; does nothing where that was done."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _why_not_yet(self) -> str:
        if _is_alive(RunDir(self._after)):
            return f"waiting for {self._after.name} to end"
        if why := no_room(self._need):  # without the turn: a run for another GPU may have room
            return why
        if not self._need.any:
            return ""
        if not self._take_turn():
            return "waiting for another queued run to start"
        if why := no_room(self._need):  # whoever had the turn has taken it
            self.end()
        return why

    def _take_turn(self) -> bool:
        """Take the lock; True as well where this file system has none: then only memory decides."""
        try:
            lock = open_private(self._home / TURN_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        except OSError as error:
            log_line(f"{TURN_FILE}: {error}; queued runs do not take turns")
            return True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        except OSError as error:
            log_line(f"{TURN_FILE}: {error}; queued runs do not take turns")
        self._lock = lock
        return True


def _is_alive(run: RunDir) -> bool:
    """Return whether anything of the other run is alive; a run that was deleted is not, one that is damaged by lock."""
    if not run.path.is_dir():
        return False
    try:
        state = reconcile(run)
    except (UsageError, TimeoutError, OSError):  # damaged, or its last process is held by the kernel
        return run.lock_is_held()
    if not state.has_ended:
        return True
    with contextlib.suppress(UsageError, OSError):
        return state.stage is Stage.PIPELINE and any(_is_alive(child) for child in children_of(run))
    return False


def _need(run: RunDir, launch: Launch, stage: Stage) -> Need:
    try:
        return need_of(run, launch, stage)
    except (UsageError, RefusedError, OSError) as error:
        log_line(f"what the run needs cannot be estimated ({error}): it waits until its GPUs are idle")
        return Need(None, None)
