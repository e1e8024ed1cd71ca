"""Progress of a task in this process: a bar on a terminal, otherwise nothing."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from .output import can_redraw


@contextmanager
def counting() -> Generator[Callable[[str, int, int], None] | None]:
    """Yield a function that takes (what, done, total), or None where stderr is no terminal."""
    if not can_redraw(sys.stderr):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as bars:
        tasks: dict[str, TaskID] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            task = tasks.get(what)
            if task is None:
                task = tasks[what] = bars.add_task(what)
            bars.update(task, completed=done, total=total)

        yield on_progress
