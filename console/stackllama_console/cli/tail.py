"""A run's events read as they come, folded into a history, and the display that they are rendered on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from stackllama_engine.contract.events import Event, EventReader
from stackllama_engine.contract.history import History
from stackllama_engine.contract.metrics import headline_names
from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.contract.stages import Stage

from ..sanitise import one_line

_METRICS = 4  # per line


class Tail:
    """One run's events over all its attempts, each yielded once, and the history that they fold into.

    Args:
        run: the run directory.
        title: its name on the display.
        stage: decides which metrics are its headline.

    Attributes:
        history: the fold over all that was read.
    """

    def __init__(self, run: RunDir, title: str, stage: Stage) -> None:
        self.run = run
        self.title = title
        self.stage = stage
        self.history = History()
        self._readers: dict[Path, EventReader] = {}

    def read(self) -> Iterator[Event]:
        """Yield the events that are new since the last call, already folded into ``history``."""
        for path in self.run.events_files():
            for event in self._reader(path).read_what_can_be():
                self.history.apply(event)
                yield event
        for path in self.run.health_files():
            for event in self._reader(path).read_what_can_be():
                self.history.add_notice(event)
                yield event

    @property
    def bad_lines(self) -> int:
        """Number of lines that are not records."""
        return sum(reader.bad_lines for reader in self._readers.values())

    @property
    def errors(self) -> list[str]:
        """One sentence for each file that could not be read."""
        return [reader.error for reader in self._readers.values() if reader.error]

    def _reader(self, path: Path) -> EventReader:
        return self._readers.setdefault(path, EventReader(path))


class Display(Protocol):
    """Rendering of a followed run for a person. Everything goes to stderr."""

    def begin(self, tail: Tail) -> None:
        """Start a run, or the next child of a pipeline; ``tail.history`` is what it did so far."""
        ...

    def event(self, tail: Tail, event: Event) -> None:
        """Render a new event of the run that began last."""
        ...

    def tick(self) -> None:
        """Update clocks; called at every poll, also when there is nothing new."""
        ...

    def close(self) -> None:
        """Render what is pending and release the terminal; also after Ctrl-C."""
        ...


def headline_values(tail: Tail, metrics: dict[str, float | None]) -> list[tuple[str, float | None]]:
    """Return (name, value) of the metrics that fit into a line: the stage's headline ones, else the first.

    A metric that is not finite comes first: it is what to know.
    """
    broken = [name for name, value in metrics.items() if value is None]
    names = [name for name in headline_names(tail.stage) if name in metrics and name not in broken]
    picked = broken + names or list(metrics)
    return [(one_line(name), metrics[name]) for name in picked[:_METRICS]]
