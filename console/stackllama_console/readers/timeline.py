"""What happened to a run, to be read among the lines of its log: phases, checkpoints, evaluations, notices, requests.

An event says how long the log was when it was written (``log``). One that does not, a supervisor's notice or an
evaluation, stands with the event before it; those of older runs stand after the lines.
"""

import bisect
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from stackllama_engine.contract.events import Event, Record
from stackllama_engine.contract.health import finding_of

from ..sanitise import one_line
from ..units import number

KEPT = 2000
_STEPS = frozenset({"train", "rollout", "score", "update"})
"""Phases that every step goes through: entering the first of them is an event, what follows is not."""
_FEW = 4


class RunEvent(Struct, frozen=True, gc=False):
    """One event. ``log`` is an offset in the log of ``attempt``; None: not known."""

    time: float
    attempt: int
    log: int | None
    text: str


class Timeline:
    """The newest events of a run, in order of time.

    Attributes:
        events: replaced, never changed, by `publish`.
    """

    def __init__(self) -> None:
        self.events: Sequence[RunEvent] = ()
        self._events: list[RunEvent] = []
        self._changed = False
        self._in_steps: dict[int, bool] = {}

    def add_phases(self, phases: Iterable[Record], attempt: int) -> None:
        """Add phases in order, but not those that a step goes through while steps are done already."""
        in_steps = self._in_steps.get(attempt, False)
        for event in phases:
            is_step = event.phase in _STEPS
            if not (in_steps and is_step):
                self.add(event, attempt)
            in_steps = is_step
        self._in_steps[attempt] = in_steps

    def add(self, event: Event | Record, attempt: int) -> None:
        """Add an event, where it is of a kind that is shown."""
        if text := _text(event):
            self._insert(RunEvent(event.time, attempt, event.log, text))

    def add_evaluation(self, moment: float, step: int, metrics: Mapping[str, float | None], attempt: int) -> None:
        """Add what was measured on held-out data."""
        names = [name for name in metrics if name.startswith("eval")]
        values = ", ".join(f"{name} {number(metrics[name])}" for name in names[:_FEW])
        more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
        self._insert(RunEvent(moment, attempt, None, one_line(f"evaluation at step {step:,}: {values}{more}")))

    def publish(self) -> None:
        """Let readers see what was added."""
        if self._changed:
            self._changed = False
            self.events = tuple(self._events)

    def _insert(self, event: RunEvent) -> None:
        events, self._changed = self._events, True
        if not events or (events[-1].attempt, events[-1].time) <= (event.attempt, event.time):
            events.append(event)
        else:
            bisect.insort_right(events, event, key=lambda each: (each.attempt, each.time))
        if len(events) > KEPT:
            del events[: -KEPT // 2]


def event_lines(events: Sequence[RunEvent], attempt: int | None, base: int, end: int) -> list[tuple[int, str]]:
    """Return (place, text) of events among the lines of an attempt's log, ascending.

    Those of other attempts come before the log; those whose place nobody recorded come after its last line.
    """
    lines: list[tuple[int, str]] = []
    own = [event for event in events if event.attempt == attempt]
    others = [event for event in events if event.attempt != attempt]
    lines += [(base - len(others) + index, _line(event)) for index, event in enumerate(others)]
    offset = None
    for event in own:
        offset = event.log if event.log is not None else offset
        lines.append((end if offset is None else min(base + offset, end), _line(event)))
    return sorted(lines, key=lambda line: line[0])


def _line(event: RunEvent) -> str:
    return f"{time.strftime('%H:%M:%S', time.localtime(event.time))} {event.text}"


def _text(event: Event | Record) -> str:
    data: dict[str, Any] = event.data or {}
    at = "" if event.step is None else f" at step {event.step:,}"
    match event.kind:
        case "phase":
            reason = data.get("reason")
            text = f"phase: {event.phase}{f' ({reason})' if reason else ''}"
        case "checkpoint":
            text = f"checkpoint{at}"
        case "health":
            text = f"{'finding' if finding_of(data) else 'notice'}: {data.get('message', '')}"
        case "request":
            text = f"request: {data.get('request', '')}{at}"
        case "end":
            cause = data.get("cause")
            text = f"ended with exit code {data.get('exit_code')}{f': {cause}' if cause else ''}"
        case _:
            return ""
    return one_line(text)
