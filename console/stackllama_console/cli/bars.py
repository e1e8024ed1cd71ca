"""Progress bars for a followed run, one per stage, in 80 columns."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from stackllama_engine.contract.events import Event
from stackllama_engine.contract.run_dir import Home

from ..readers.waiting import usual_wait, waits
from ..sanitise import one_line
from ..units import duration, number
from .tail import Tail, headline_values


class Bars:
    """One bar per stage; finished ones stay above the running one. Notices are printed above them all."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(width=13, no_wrap=True)),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[step]}", markup=False, table_column=Column(width=9, justify="right")),
            TextColumn("{task.fields[time]}", markup=False, table_column=Column(width=9, justify="right")),
            TextColumn(
                "{task.fields[text]}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            console=self._console,
            expand=True,
            auto_refresh=False,  # painted on change only: idle, one paint a second goes over the wire
        )
        self._task: TaskID | None = None
        self._tail: Tail | None = None
        self._began = 0.0
        self._ended = False
        self._changed = False
        self._shown_time = ""
        self._usual = ""
        self._progress.start()

    def begin(self, tail: Tail) -> None:
        """Add a bar; complete the one before."""
        self._finish()
        state = tail.run.read_state()
        usual = usual_wait(Home(tail.run.path.parents[1]), tail.run) if waits(state, tail.history) else None
        self._usual = f" (first step usually after {duration(usual)})" if usual else ""
        self._began = state.started or state.created or time.time()
        self._tail = tail
        self._shown_time = ""
        self._changed = True
        self._task = self._progress.add_task(tail.title, total=1, step="", time="", text=f"starting{self._usual}")
        if tail.history.updated is not None:
            self._draw()
        self._ended = state.ended is not None
        if state.ended is not None:
            self._show_time(state.ended)

    def event(self, tail: Tail, event: Event) -> None:
        """Move the bar; print a notice above it."""
        if event.kind == "health":
            message = f"{tail.title}: {one_line(str(event.data.get('message', '')))}"
            self._console.print(Text(message), soft_wrap=True)
        self._draw()
        self._ended = event.kind == "end"
        if self._ended:
            self._show_time(event.time)

    def tick(self) -> None:
        """Update the clock and paint what has changed since the last poll."""
        if not self._ended:
            self._show_time(time.time())
        if self._changed:
            self._changed = False
            self._progress.refresh()

    def close(self) -> None:
        """Stop drawing; the bars stay as they are."""
        self._finish()
        self._progress.refresh()
        self._progress.stop()

    def _draw(self) -> None:
        if self._tail is None or self._task is None:
            return
        history = self._tail.history
        total = history.total_steps
        text = " ".join(
            f"{name.rpartition('/')[2]} {number(value)}" for name, value in headline_values(self._tail, history.last)
        )
        if history.reason or not text:
            text = one_line(history.at or "starting") + ("" if history.reason or history.step else self._usual)
        self._changed = True
        self._progress.update(
            self._task,
            completed=history.step if total else 0,
            total=total or 1,
            step=f"{history.step:,}/{total:,}" if total else "",
            text=text,
        )

    def _show_time(self, now: float) -> None:
        text = duration(now - self._began)
        if self._task is not None and text != self._shown_time:
            self._shown_time = text
            self._progress.update(self._task, time=text)
            self._changed = True

    def _finish(self) -> None:
        """Complete the running bar: its whole time, and full where it succeeded, also without steps as in a merge."""
        if self._tail is None or self._task is None:
            return
        state, history = self._tail.run.read_state(), self._tail.history
        if state.ended is not None:
            self._show_time(state.ended)
        if history.exit_code == 0 and state.has_ended:
            total = history.total_steps or 1
            self._progress.update(self._task, total=total, completed=total)
            if not history.last:
                self._progress.update(self._task, text="done")
