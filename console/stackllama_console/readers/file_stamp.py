"""Detection of changes in a file or folder, at the price of one ``stat``."""

import os
import time
from pathlib import Path

_TICK = 50_000_000  # ns; a change in the same tick of the file system's clock leaves no other time stamp


class Stamp:
    """Inode, size and time of change of a path.

    Raises:
        OSError: from `changed`, for anything but a missing path.
    """

    __slots__ = ("_seen", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | str | None = "never"

    @property
    def missing(self) -> bool:
        """Whether it was missing at the last check."""
        return self._seen is None

    def changed(self) -> bool:
        """Return whether it differs from the last check; also when it is too fresh to tell."""
        try:
            status = os.stat(self.path)  # noqa: PTH116 - half the price of Path.stat
        except (FileNotFoundError, NotADirectoryError):
            now = None
        else:
            now = (status.st_ino, status.st_size, status.st_mtime_ns)
        changed = now != self._seen
        fresh = now is not None and time.time_ns() - now[2] < _TICK
        self._seen = "fresh" if fresh else now
        return changed
