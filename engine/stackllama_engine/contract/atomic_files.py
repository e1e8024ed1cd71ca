"""Atomic writes of files that other processes read meanwhile and that a crash must not truncate."""

import contextlib
import errno
import os
import tempfile
from pathlib import Path

PRIVATE_DIR = 0o700
PRIVATE_FILE = 0o600
PATTERN = "*?"
"""Characters that make a file's name a pattern for several files."""


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file atomically: temporary file → fsync → rename → fsync of the directory. Mode 0600.

    Raises:
        OSError: disk full or not writable, with the file's name; the old file is untouched.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mkstemp makes 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # disk full: a failed write does not name its file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    fsync_directory(path.parent)


def write_into_spare(spare: Path, path: Path, data: bytes) -> None:
    """Replace a file atomically on a full disk, by reusing a spare file that was written earlier.

    Args:
        spare: file of :func:`keep_spare`, at least as long as ``data``; it becomes ``path``.
        path: the file.
        data: its new content.

    Raises:
        OSError: there is no spare, or it is too short; the old file is untouched.
    """
    descriptor = os.open(spare, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_size < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.pwrite(descriptor, data, 0)
        os.ftruncate(descriptor, len(data))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    spare.replace(path)


def keep_spare(spare: Path, size: int) -> None:
    """Create a file of zeros, if there is none, to hold blocks and an inode for use on a full disk.

    Raises:
        OSError: there is no room for it.
    """
    if not spare.exists():
        write_whole(spare, bytes(size))


def fsync_directory(path: Path) -> None:
    """Make renames inside a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private_dir(path: Path) -> None:
    """Create a directory 0700 whatever the umask, with its missing parents, 0700 as well.

    Raises:
        FileExistsError: it exists already; of two callers exactly one succeeds.
    """
    for parent in reversed(path.parents):  # Path.mkdir(parents=True) would make these with the umask's mode
        with contextlib.suppress(FileExistsError):
            if not parent.exists():
                parent.mkdir(mode=PRIVATE_DIR)
    path.mkdir(mode=PRIVATE_DIR)
    path.chmod(PRIVATE_DIR)


def open_private(path: Path, flags: int) -> int:
    """Open with mode 0600 and close-on-exec, without following a link or waiting for a pipe's reader.

    Raises:
        OSError: as ``os.open``.
    """
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, PRIVATE_FILE)


def existing(text: str) -> Path | None:
    """Return the existing path that a text names, resolved; None if there is none or it may not be accessed."""
    try:
        path = Path(text).expanduser()
        return path.resolve() if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, a folder that may not be entered, `~nobody`, a NUL
        return None


def existing_files(text: str) -> Path | None:
    """Return as :func:`existing`, also for a pattern in place of a file's name (``data/train-*.parquet``)."""
    path = existing(text)
    if path is not None or not set(PATTERN) & set(Path(text).name):
        return path
    folder = existing(str(Path(text).parent))
    return folder / Path(text).name if folder is not None and folder.is_dir() else None
