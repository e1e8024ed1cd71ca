"""Opening files that belong to others: never a pipe or a device, on which a reader would hang."""

import os
import stat
from pathlib import Path


def open_regular(path: Path) -> int:
    """A descriptor to read from.

    Raises:
        OSError: missing, not permitted, or not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file")
    return descriptor


def read_whole(path: Path, most: int) -> bytes | None:
    """A whole file; None where it is larger than ``most`` bytes.

    Raises:
        OSError: as `open_regular`.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        data = file.read(most + 1)
    return data if len(data) <= most else None
