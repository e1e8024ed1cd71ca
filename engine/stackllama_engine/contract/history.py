"""The state of a run as a pure fold over its events: one function for the live screen, replay, JSON and tests."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from msgspec import Struct

from .events import Event, EventReader, Record

_HEALTH_KEPT = 200
_PHASES_KEPT = 32
_MEASURES = frozenset({"allocated", "reserved", "device", "rss"})


class History(Struct, kw_only=True):
    """What the events say so far. ``first`` and ``last`` hold the earliest and newest value of each metric."""

    phase: str | None = None
    reason: str | None = None
    """Why a phase that waits does, with figures."""
    step: int = 0
    total_steps: int | None = None
    first: dict[str, float | None] = {}
    last: dict[str, float | None] = {}
    memory: dict[str, float | None] = {}
    memory_by_phase: dict[str, dict[str, float]] = {}
    """Bytes by phase and name, the largest that were reported."""
    checkpoint: int | None = None
    """Step of the newest checkpoint."""
    health: list[str] = []
    """The newest messages, newest last; a run that complains at every step does not fill the memory."""
    health_count: int = 0
    """How many there were."""
    exit_code: int | None = None
    cause: str | None = None
    updated: float | None = None

    @property
    def at(self) -> str | None:
        """The phase, and why it waits where it does."""
        return f"{self.phase}: {self.reason}" if self.phase and self.reason else self.phase

    def enter(self, event: Event | Record) -> None:
        """Take in a ``phase`` event."""
        self.phase = event.phase
        reason = (event.data or {}).get("reason")
        self.reason = reason if isinstance(reason, str) else None

    def apply(self, event: Event | Record) -> None:
        """Take one event in, in constant time."""
        self.updated = event.time
        if event.step is not None:
            self.step = event.step
        if event.total_steps is not None:
            self.total_steps = event.total_steps
        match event.kind:
            case "phase":
                self.enter(event)
            case "metrics" if metrics := event.metrics:
                if not self.first.keys() >= metrics.keys():
                    self.first = metrics | self.first
                self.last.update(metrics)
            case "memory" if event.metrics:
                self.memory.update(event.metrics)
                self.take_phase_memory(event)
            case "checkpoint":
                self.checkpoint = event.step
            case "health":
                self.remark(event)
            case "end":
                code, cause = ((event.data or {}).get(key) for key in ("exit_code", "cause"))
                self.exit_code = code if isinstance(code, int) else None
                self.cause = None if cause is None else str(cause)
            case _:
                pass  # progress carries step and total; kinds of a newer writer are ignored

    def remark(self, event: Event | Record) -> None:
        """Take in a ``health`` event alone: the supervisor's say nothing of when the worker was last heard of."""
        self.health.append(str((event.data or {}).get("message", "")))
        self.health_count += 1
        del self.health[:-_HEALTH_KEPT]

    def take_phase_memory(self, event: Event | Record) -> None:
        """Of a ``memory`` event, what its phase took alone; another writer's odd shapes are left out."""
        given: Any = (event.data or {}).get("phase")
        if event.phase is None or not isinstance(given, dict):
            return
        found = cast("dict[str, Any]", given)
        if event.phase not in self.memory_by_phase and len(self.memory_by_phase) >= _PHASES_KEPT:
            return
        kept = self.memory_by_phase.setdefault(event.phase, {})
        for name in _MEASURES & found.keys():
            value = found[name]
            if isinstance(value, int | float) and value > kept.get(name, 0.0):
                kept[name] = float(value)


def fold(events: Iterable[Event | Record], history: History | None = None) -> History:
    """Fold events into a history (a new one unless given)."""
    history = history or History()
    for event in events:
        history.apply(event)
    return history


def read_history(events_files: Iterable[Path]) -> History:
    """The history of a run over all its attempts."""
    history = History()
    for path in events_files:
        fold(EventReader(path).read_what_can_be(), history)
    return history
