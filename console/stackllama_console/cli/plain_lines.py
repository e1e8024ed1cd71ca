"""Plain lines for a followed run: for logs, pipes and simple terminals."""

from stackllama_engine.contract.events import Event

from ..readers.waiting import WaitWatch
from ..sanitise import one_line
from ..units import number
from .output import say
from .tail import Tail, headline_values

_INTERVAL = 5.0  # seconds of the run between two lines of metrics


class Lines:
    """One line per new phase or activity, checkpoint and notice, and one of metrics every few seconds."""

    def __init__(self) -> None:
        self._phases: set[str] = set()
        self._printed = 0.0
        self._pending: tuple[Tail, Event] | None = None

    def begin(self, tail: Tail) -> None:
        """Print a heading, and the newest metrics when it is not at the start."""
        self._flush()
        self._phases, self._printed = set(), 0.0
        say(f"-- {tail.title} ({tail.run.id})" if tail.title != tail.stage else f"-- {tail.run.id}")
        if waiting := WaitWatch(tail.run).text(tail.run.read_state(), tail.history):
            say(f"{tail.title}: {waiting}")
        if tail.history.last:
            say(metrics_line(tail, tail.history.last))

    def event(self, tail: Tail, event: Event) -> None:
        """Print what is new; metrics at most every five seconds, the last ones always."""
        match event.kind:
            case "phase" if event.phase and event.phase not in self._phases:  # PPO's come round each step
                self._flush()
                self._phases.add(event.phase)
                say(f"{tail.title}: {one_line(event.phase)}")
            case "activity" if isinstance(doing := event.data.get("doing"), str) and doing not in self._phases:
                self._flush()
                self._phases.add(doing)
                say(f"{tail.title}: {one_line(doing)}")
            case "metrics":
                self._pending = (tail, event)
                if abs(event.time - self._printed) >= _INTERVAL:  # also when the run's clock was set back
                    self._flush()
            case "checkpoint":
                self._flush()
                say(f"{tail.title}: checkpoint at step {'?' if event.step is None else f'{event.step:,}'}")
            case "health":
                self._flush()
                say(f"{tail.title}: {one_line(str(event.data.get('message', '')))}")
            case "end":
                self._flush()
            case _:
                pass

    def tick(self) -> None:
        """Do nothing: lines have no clock."""

    def close(self) -> None:
        """Print the metrics that were held back."""
        self._flush()

    def _flush(self) -> None:
        if self._pending:
            tail, event = self._pending
            self._pending = None
            self._printed = event.time
            say(metrics_line(tail, event.metrics, event.step))


def metrics_line(tail: Tail, metrics: dict[str, float | None], step: int | None = None) -> str:
    """Return ``ppo 12/60 objective/scores 0.41 objective/kl 1.2``."""
    total = tail.history.total_steps
    where = f"{tail.history.step if step is None else step:,}{f'/{total:,}' if total else ''}"
    return " ".join([tail.title, where, *(f"{name} {number(value)}" for name, value in headline_values(tail, metrics))])
