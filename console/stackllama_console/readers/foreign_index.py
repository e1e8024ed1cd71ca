"""Other trainers' runs that were opened before, as rows of the list of runs: whether their files still change."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from stackllama_engine.contract.user_dirs import expanded

from ..sanitise import one_line
from ..units import span
from .foreign import QUIET_SECONDS
from .foreign_files import find_files
from .runs_index import Row

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

    def poll(self) -> bool:
        """Look at the directories that are due; return whether any row changed."""
        before, now = self.rows, self._clock()
        rows: list[Row] = []
        for path in self._paths():
            if path not in self._known or now >= self._look_at[path]:
                self._known[path] = row = _row(path, now)
                self._look_at[path] = now + (_SECONDS if row.phase == "running" else _SILENT_SECONDS)
            rows.append(self._known[path])
        self.rows = rows
        return rows != before


def _row(path: str, now: float) -> Row:
    folder = expanded(Path(path))
    title = one_line(folder.name) or one_line(path)
    try:
        files = find_files(folder)
    except OSError as error:
        why = "it is gone" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror or error}"
        return Row(id=path, path=folder, title=title, phase="unknown", error=one_line(why))
    changed = max(files.holders.values(), default=0) / 1e9
    if not changed:
        return Row(id=path, path=folder, title=title, phase="unknown", error="nothing to follow is in it any more")
    if now - changed < QUIET_SECONDS:
        return Row(id=path, path=folder, title=title, phase="running", at="another trainer")
    return Row(id=path, path=folder, title=title, phase="silent", at=f"no sign for {span(now - changed)}")
