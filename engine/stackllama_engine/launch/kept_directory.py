"""A directory held open, to find it again after it was renamed or tell it from another one of its name."""

import os
from pathlib import Path


class KeptDirectory:
    """One directory, whatever happens to its name.

    Attributes:
        path: the path by which it was last found.
        handle: a path that leads to it in this process only, also after it lost its name.

    Raises:
        OSError: there is no such directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.handle = Path(f"/proc/self/fd/{self._descriptor}")

    def find(self) -> Path | None:
        """Return its current path; None when it was removed, or cannot be reached from here."""
        if self._leads_here(self.path):
            return self.path
        path = self.handle.readlink()
        if path == self.path:  # same name: some file systems renumber their directories
            return path
        if not self._leads_here(path):
            return None
        self.path = path
        return path

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)

    def _leads_here(self, path: Path) -> bool:
        try:
            return os.path.samestat(path.stat(), os.fstat(self._descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # a mount that does not answer proves nothing
            return True
