"""Requests from people and from the system, agreed on by all ranks.

Rank 0 reads ``control/``; one all-reduce tells every rank. Each rank polls equally often: at step boundaries, and at
the end of each phase of a PPO step and each batch of an evaluation. A rank between two such points that already knows
of a stop (:meth:`Requests.leave_early`) ends its work early, and agrees with the others at the next one.
"""

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import distributed

from ..contract import requests
from ..contract.requests import Change
from ..contract.run_dir import RunDir
from .reporting import Reporter
from .save_timer import SaveTimer
from .signals import Signals

_KEYS = ("learning_rate", "kl_coef")
_POLL_SECONDS = 0.2  # between two reads of a directory that may be on a network


class LeftEarly(Exception):
    """This rank ended its work early, because it knows of a stop; what it computed is incomplete."""


@dataclass(frozen=True)
class Wanted:
    """Requests that wait, the same on every rank."""

    stop: bool = False
    save: bool = False
    sample: bool = False
    pause: bool = False
    resume: bool = False
    due: bool = False
    """A checkpoint is due by time (:mod:`.save_timer`)."""
    changes: tuple[Change, ...] = ()
    waits: bool = False
    """Not a request: something could not be written, and the run has to wait for it."""


class Agreed(NamedTuple):
    """Facts known to one rank that all ranks must know."""

    stop: bool
    failed: bool
    problem: bool


class Requests:
    """Requests to this stage.

    Args:
        run: the run directory.
        reporter: journals what was served.
        device: where collectives run.
        signals: of this process.
    """

    def __init__(self, run: RunDir, reporter: Reporter, device: torch.device, signals: Signals) -> None:
        self.paused = False
        self.must_stop = False
        """All ranks agreed to stop, though no request and no signal says so."""
        self.signals = signals
        self.timer: SaveTimer | None = None
        """Timer of checkpoints by time, once there is something to save."""
        self._run = run
        self._reporter = reporter
        self._device = device
        self._stop_seen = False
        self._polled = 0.0
        self._stuck: set[str] = set()  # served, and still there

    def poll(self, step: int) -> Wanted:
        """Return the requests that wait after ``step`` steps (a collective)."""
        pending = self._pending()
        changes = self._changes() if self._reporter.is_main else {}
        due = self._reporter.is_main and self.timer is not None and self.timer.due(step)
        waits = self._reporter.is_main and self._reporter.disk.waits
        kinds = ("save", "sample", "pause", "continue")
        flags = [self._stops(pending), *(kind in pending for kind in kinds), due, waits]
        values = [part for key in _KEYS for part in (key in changes, changes.get(key, 0.0))]
        agreed = self._any([float(one) for one in (*flags, *values)])
        stop, save, sample, pause, resume, due, waits = (bool(flag) for flag in agreed[: len(flags)])
        settings = zip(_KEYS, agreed[len(flags) :: 2], agreed[len(flags) + 1 :: 2], strict=True)
        agreed_changes = tuple(Change(key, value) for key, is_set, value in settings if is_set)
        return Wanted(
            stop=stop,
            save=save,
            sample=sample,
            pause=pause,
            resume=resume,
            due=due,
            changes=agreed_changes,
            waits=waits,
        )

    def agree(self, failed: bool = False, *, problem: bool = False) -> Agreed:
        """Agree inside a step on whether to stop, and whether any rank failed or has a problem (a collective)."""
        flags = self._any([float(self._stops(self._pending())), float(failed), float(problem)])
        return Agreed(*(bool(flag) for flag in flags))

    def leave_early(self) -> None:
        """End this rank's work early when a stop waits; no collective, so it may be called anywhere and often.

        Raises:
            LeftEarly: a stop waits.
        """
        now = time.monotonic()
        if not self._stop_seen and now - self._polled > _POLL_SECONDS:
            self._polled = now
            self._stop_seen = self._run.asked_to_stop()
        if self._stop_seen or self.signals.received:
            raise LeftEarly

    def served(self, what: str, step: int, change: Change | None = None) -> None:
        """Remove a request and journal it; elsewhere than on rank 0 nothing."""
        if not self._reporter.is_main:
            return
        self._reporter.request(what, step, change)
        if change is not None:
            self._remove(f"set-{change.key}")
        elif what != "stop":  # it stays until the attempt is over: the supervisor reads it as well
            self._remove(what)

    def _pending(self) -> set[str]:
        return set(self._run.requests()) - self._stuck if self._reporter.is_main else set()

    def _remove(self, name: str) -> None:
        """Remove a file of ``control/``; one that cannot be removed is reported once, and not served again."""
        try:
            requests.forget(self._run, name)
        except OSError as error:
            self._stuck.add(name)
            self._reporter.health(f"control/{name} cannot be removed ({error.strerror}); served once only")

    def _stops(self, pending: set[str]) -> bool:
        return self.must_stop or self.signals.received or self._stop_seen or "stop" in pending

    def _changes(self) -> dict[str, float]:
        changes, unreadable = requests.changes(self._run, but=self._stuck)
        for name in [*unreadable, *(f"set-{change.key}" for change in changes if change.key not in _KEYS)]:
            self._reporter.health(f"ignored unknown request control/{name}")
            self._remove(name)
        return {change.key: change.value for change in changes if change.key in _KEYS}

    def _any(self, values: list[float]) -> list[float]:
        """Return the maximum of each value over all ranks; none is negative."""
        agreed = torch.tensor(values, device=self._device, dtype=torch.float64)
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            distributed.all_reduce(agreed, op=distributed.ReduceOp.MAX)
        return agreed.tolist()
