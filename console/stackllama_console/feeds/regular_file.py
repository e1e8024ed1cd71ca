"""Opening files that belong to others: never a pipe or a device, on which a reader would hang."""

import errno
import os
import stat
from pathlib import Path

_MOST_POINTER = 1024  # bytes, by its specification


def open_regular(path: Path) -> int:
    """A descriptor to read from.

    Raises:
        OSError: missing, not permitted, or not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return descriptor


def is_lfs_pointer(path: Path) -> bool:
    """Whether Git LFS left a pointer in the file's place (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)."""
    try:
        if path.stat().st_size > _MOST_POINTER:
            return False
        return (read_whole(path, _MOST_POINTER) or b"").startswith(b"version https://git-lfs.github.com/spec/")
    except OSError:  # whoever reads it will say so
        return False


def read_whole(path: Path, most: int) -> bytes | None:
    """A whole file; None where it is larger than ``most`` bytes.

    Raises:
        OSError: as `open_regular`.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        data = file.read(most + 1)
    return data if len(data) <= most else None
