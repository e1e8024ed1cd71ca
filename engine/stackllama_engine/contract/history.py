"""The state of a run as a pure fold over its events: one reducer for the live screen, replay, JSON and tests."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from msgspec import Struct

from .events import Event, EventReader, Record

_HEALTH_KEPT = 200
_PHASES_KEPT = 32
_MEASURES = frozenset({"allocated", "reserved", "device", "rss"})


class History(Struct, kw_only=True):
    """The state that the events so far add up to.

    ``first`` and ``last`` hold the earliest and newest value of each metric; None is a value that was not finite.
    """

    phase: str | None = None
    reason: str | None = None
    """Why a waiting phase waits, with numbers."""
    step: int = 0
    total_steps: int | None = None
    first: dict[str, float | None] = {}
    last: dict[str, float | None] = {}
    memory: dict[str, float | None] = {}
    memory_by_phase: dict[str, dict[str, float]] = {}
    """Bytes by phase and name, the largest that were reported."""
    health: list[str] = []
    """The newest notices, newest last; bounded, so that a run with a notice at every step does not fill the memory."""
    exit_code: int | None = None
    cause: str | None = None
    updated: float | None = None

    @property
    def at(self) -> str | None:
        """The phase, with the reason where it waits."""
        return f"{self.phase}: {self.reason}" if self.phase and self.reason else self.phase

    def apply(self, event: Event | Record) -> None:
        """Fold one event into the history, in constant time."""
        self.apply_facts(event)
        if not event.metrics:
            return
        if event.kind == "metrics":
            if not self.first.keys() >= event.metrics.keys():
                self.first = event.metrics | self.first
            self.last.update(event.metrics)
        elif event.kind == "memory":
            self.memory.update(event.metrics)

    def apply_facts(self, event: Event | Record) -> None:
        """Fold all of an event but its values of metrics and memory.

        For a reader of a million events, which gathers those values in columns and sets ``first``, ``last`` and
        ``memory`` from them.
        """
        self.updated = event.time
        if event.step is not None:
            self.step = event.step
        if event.total_steps is not None:
            self.total_steps = event.total_steps
        match event.kind:
            case "metrics" | "progress" | "samples" | "checkpoint":
                pass  # nearly all events: nothing but step and total
            case "phase":
                self.phase = event.phase
                reason = (event.data or {}).get("reason")
                self.reason = reason if isinstance(reason, str) else None
            case "memory" if event.metrics:
                self._apply_phase_memory(event)
            case "health":
                self.add_notice(event)
            case "end":
                code, cause = ((event.data or {}).get(key) for key in ("exit_code", "cause"))
                self.exit_code = code if isinstance(code, int) else None
                self.cause = None if cause is None else str(cause)
            case _:
                pass  # kinds of a newer writer are ignored

    def add_notice(self, event: Event | Record) -> None:
        """Append the notice of a ``health`` event.

        Alone for those of the supervisor: they do not say when the worker last wrote, so ``updated`` stays.
        """
        self.health.append(str((event.data or {}).get("message", "")))
        del self.health[:-_HEALTH_KEPT]

    def _apply_phase_memory(self, event: Event | Record) -> None:
        """Keep the peaks of the phase that a ``memory`` event names; malformed ones are ignored."""
        data: Any = (event.data or {}).get("phase")
        if event.phase is None or not isinstance(data, dict):
            return
        measured = cast("dict[str, Any]", data)
        if event.phase not in self.memory_by_phase and len(self.memory_by_phase) >= _PHASES_KEPT:
            return
        peaks = self.memory_by_phase.setdefault(event.phase, {})
        for name in _MEASURES & measured.keys():
            value = measured[name]
            if isinstance(value, int | float) and value > peaks.get(name, 0.0):
                peaks[name] = float(value)


def fold(events: Iterable[Event | Record], history: History | None = None) -> History:
    """Fold events into a history (a new one by default) and return it."""
    history = history or History()
    for event in events:
        history.apply(event)
    return history


def read_history(events_files: Iterable[Path]) -> History:
    """Return the history of a run over the events files of all its attempts."""
    history = History()
    for path in events_files:
        fold(EventReader(path).read_what_can_be(), history)
    return history
