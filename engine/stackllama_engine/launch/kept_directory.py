"""A run directory held open, so that it is found again when it was renamed, and known to be another when it was not."""

import os
from pathlib import Path


class KeptDirectory:
    """One directory, whatever becomes of its name.

    Attributes:
        path: by which it was found last.
        handle: a path that leads to it in this process alone, also when it has no name any more.

    Raises:
        OSError: there is no such directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.handle = Path(f"/proc/self/fd/{self._descriptor}")

    def find(self) -> Path | None:
        """Where it is now; None when it was removed, or is where no path leads from here."""
        if self._leads_here(self.path):
            return self.path
        path = self.handle.readlink()
        if path == self.path:  # same name: some file systems number their directories anew
            return path
        if not self._leads_here(path):
            return None
        self.path = path
        return path

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)

    def _leads_here(self, path: Path) -> bool:
        try:
            return os.path.samestat(path.stat(), os.fstat(self._descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # a mount that does not answer is no evidence
            return True
