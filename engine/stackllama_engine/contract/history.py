"""The state of a run as a pure fold over its events: one function for the live screen, replay, JSON and tests."""

from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from .events import Event, EventReader


class History(Struct, kw_only=True):
    """What the events say so far. ``first`` and ``last`` hold the earliest and newest value of each metric."""

    phase: str | None = None
    step: int = 0
    total_steps: int | None = None
    first: dict[str, float | None] = {}
    last: dict[str, float | None] = {}
    memory: dict[str, float | None] = {}
    checkpoint: int | None = None
    """Step of the newest checkpoint."""
    health: list[str] = []
    exit_code: int | None = None
    cause: str | None = None
    updated: float | None = None

    def apply(self, event: Event) -> None:
        """Take one event in."""
        self.updated = event.time
        if event.step is not None:
            self.step = event.step
        if event.total_steps is not None:
            self.total_steps = event.total_steps
        match event.kind:
            case "phase":
                self.phase = event.phase
            case "metrics":
                self.first = event.metrics | self.first
                self.last = self.last | event.metrics
            case "memory":
                self.memory = self.memory | event.metrics
            case "checkpoint":
                self.checkpoint = event.step
            case "health":
                self.health = [*self.health, str(event.data.get("message", ""))]
            case "end":
                self.exit_code = event.data.get("exit_code")
                self.cause = event.data.get("cause")
            case _:
                pass  # progress carries step and total; kinds of a newer writer are ignored


def fold(events: Iterable[Event], history: History | None = None) -> History:
    """Fold events into a history (a new one unless given)."""
    history = history or History()
    for event in events:
        history.apply(event)
    return history


def read_history(events_files: Iterable[Path]) -> History:
    """The history of a run over all its attempts."""
    history = History()
    for path in events_files:
        fold(EventReader(path).read(), history)
    return history
