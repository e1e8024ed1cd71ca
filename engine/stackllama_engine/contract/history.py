"""The state of a run as a pure fold over its events: one reducer for the live screen, replay, JSON and tests."""

import bisect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from msgspec import Struct

from .events import Event, EventReader, Record
from .health import Finding, finding_of

_HEALTH_KEPT = 200
_PHASES_KEPT = 32
_MEASURES = frozenset({"allocated", "reserved", "device", "rss"})


class Notice(NamedTuple):
    """A notice of a run, by whom and when."""

    time: float
    by_supervisor: bool
    text: str


class History(Struct, kw_only=True):
    """The state that the events so far add up to.

    ``first`` and ``last`` hold the earliest and newest value of each metric; None is a value that was not finite.
    """

    phase: str | None = None
    reason: str | None = None
    """Why a waiting phase waits, with numbers."""
    doing: str | None = None
    """What is done in a phase before the first step."""
    share: float | None = None
    """How much of it is done, from 0 to 1."""
    step: int = 0
    total_steps: int | None = None
    first: dict[str, float | None] = {}
    last: dict[str, float | None] = {}
    memory: dict[str, float | None] = {}
    memory_by_phase: dict[str, dict[str, float]] = {}
    """Bytes by phase and name, the largest that were reported."""
    notices: list[Notice] = []
    """The newest notices of workers and supervisors by time, newest last, in whatever order their files were read;
    bounded, so that a run with a notice at every step does not fill the memory."""
    findings: dict[str, Finding] = {}
    """What health rules have found and not cleared, by rule, newest last; replaced rather than changed."""
    exit_code: int | None = None
    cause: str | None = None
    updated: float | None = None

    @property
    def at(self) -> str | None:
        """The phase, with the reason where it waits; what is done before the first step, where that is known."""
        if self.doing:
            return self.doing if self.share is None else f"{self.doing} {self.share:.0%}"
        return f"{self.phase}: {self.reason}" if self.phase and self.reason else self.phase

    @property
    def health(self) -> list[str]:
        """The texts of the notices, newest last."""
        return [notice.text for notice in self.notices]

    def apply(self, event: Event | Record) -> None:
        """Fold one event into the history, in constant time."""
        self.apply_facts(event)
        if not event.metrics:
            return
        if event.kind == "metrics":
            fold_values(self.first, self.last, event.metrics, event.metrics)
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
                self.doing = self.share = None
                reason = (event.data or {}).get("reason")
                self.reason = reason if isinstance(reason, str) else None
            case "activity":
                doing, share = ((event.data or {}).get(key) for key in ("doing", "share"))
                self.doing = doing if isinstance(doing, str) else None
                self.share = min(max(share, 0.0), 1.0) if isinstance(share, int | float) else None
            case "memory" if event.metrics:
                self._apply_phase_memory(event)
            case "health":
                self._insert(event, by_supervisor=False)
                self._apply_finding(event)
            case "end":
                code, cause = ((event.data or {}).get(key) for key in ("exit_code", "cause"))
                self.exit_code = code if isinstance(code, int) else None
                self.cause = None if cause is None else str(cause)
            case _:
                pass  # kinds of a newer writer are ignored

    def _apply_finding(self, event: Event | Record) -> None:
        finding = finding_of(event.data)
        if finding is None:
            return
        others = {rule: each for rule, each in self.findings.items() if rule != finding.rule}
        self.findings = others if finding.cleared else others | {finding.rule: finding}

    def add_notice(self, event: Event | Record) -> None:
        """Insert a notice of the supervisor, which does not say when the worker last wrote: ``updated`` stays."""
        self._insert(event, by_supervisor=True)

    def _insert(self, event: Event | Record, *, by_supervisor: bool) -> None:
        notice = Notice(event.time, by_supervisor, str((event.data or {}).get("message", "")))
        bisect.insort_right(self.notices, notice, key=lambda each: each[:2])
        del self.notices[:-_HEALTH_KEPT]

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


def fold_values(
    first: dict[str, float | None],
    last: dict[str, float | None],
    oldest: Mapping[str, float | None],
    newest: Mapping[str, float | None],
) -> None:
    """Keep the earliest value of each metric in ``first`` and the newest one in ``last``.

    Args:
        first: changed in place.
        last: changed in place.
        oldest: first values of one event, or of many in a row.
        newest: last values of the same.
    """
    if not first.keys() >= oldest.keys():
        for name, value in oldest.items():
            first.setdefault(name, value)
    last.update(newest)


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
