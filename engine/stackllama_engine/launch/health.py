"""Notices of the supervisor as events in ``attempts/NNN/health.jsonl``. It is the only writer."""

from pathlib import Path

from ..contract.events import EventWriter
from ..contract.run_dir import HEALTH_FILE

_KEPT = 100  # notices that wait for a file that cannot be opened


class Journal:
    """Opened at the first notice, so that a healthy run has no such file.

    Args:
        folder: the attempt's.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / HEALTH_FILE
        self._writer: EventWriter | None = None
        self._waiting: list[str] = []

    def write(self, message: str) -> None:
        """Add a notice, one sentence for a person; on a full disk it is kept for later."""
        self._waiting = [*self._waiting, message][-_KEPT:]
        self._write_waiting()

    def _write_waiting(self) -> None:
        if self._writer is None:
            try:
                self._writer = EventWriter(self._path)
            except OSError:  # no room for a new file: with the next notice
                return
        for each in self._waiting:
            self._writer.write("health", data={"message": each})
        self._waiting = []

    def close(self) -> None:
        """Flush and close it."""
        if self._waiting:
            self._write_waiting()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
