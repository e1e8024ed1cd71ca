"""Other trainers' runs that were opened before, as rows of the list of runs, with what their monitor says of them."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import structs

from stackllama_engine.contract.metrics import headline
from stackllama_engine.contract.user_dirs import expanded

from ..sanitise import one_line
from ..units import span
from .foreign import ForeignReader
from .run_row import Row

_SECONDS = 10.0  # between two looks at a directory whose files change
_SILENT_SECONDS = 60.0  # and at one whose files do not


class ForeignIndex:
    """Follower of directories.

    Args:
        paths: gives them now.
        clock: Unix seconds.

    Attributes:
        rows: one per directory, in their order; replaced by `poll`. Their ids are the paths.
    """

    def __init__(self, paths: Callable[[], Sequence[str]], clock: Callable[[], float] = time.time) -> None:
        self.rows: list[Row] = []
        self._paths = paths
        self._clock = clock
        self._look_at: dict[str, float] = {}
        self._known: dict[str, Row] = {}
        self._readers: dict[str, ForeignReader] = {}

    def poll(self) -> bool:
        """Look at the directories that are due; return whether any row changed."""
        before, now = self.rows, self._clock()
        rows: list[Row] = []
        paths = self._paths()
        for path in self._readers.keys() - set(paths):  # forgotten
            del self._readers[path]
        for path in paths:
            if path not in self._known or now >= self._look_at[path]:
                self._known[path] = row = self._row(path, now)
                self._look_at[path] = now + (_SECONDS if row.phase == "running" else _SILENT_SECONDS)
            rows.append(self._known[path])
        self.rows = rows
        return rows != before

    def _row(self, path: str, now: float) -> Row:
        folder = expanded(Path(path))
        reader = self._readers.setdefault(path, ForeignReader(folder, self._clock))
        row = Row(id=path, path=folder, title=reader.title)
        reader.poll()
        if not folder.is_dir():
            del self._readers[path]
            return structs.replace(row, error="it is gone")
        if not any((folder / source).exists() for source in reader.sources):
            del self._readers[path]
            return structs.replace(row, error=reader.error or "nothing to follow is in it any more")
        history = reader.history
        last = history.last
        metric = next(((each.short, last[each.name]) for each in headline(None) if each.name in last), None)
        at = "" if metric else "another trainer"
        if reader.phase == "silent" and history.updated:
            at = f"no sign for {span(now - history.updated)}"
        eta = reader.eta(now)
        return structs.replace(
            row,
            phase=reader.phase,
            step=history.step,
            total_steps=history.total_steps,
            created=reader.began or 0.0,
            started=reader.began,
            ended=history.updated if reader.phase == "finished" else None,
            metric=metric,
            at=at,
            values={one_line(name): value for name, value in last.items()},
            seconds_left=eta.likely if eta else None,
            error=reader.error,
        )
