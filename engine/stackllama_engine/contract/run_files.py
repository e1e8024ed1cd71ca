"""Reading the files of a run directory, whatever has come into their place.

A directory, a pipe, a device or a link may stand where a file should: none is followed, and none is waited for. What is
not what it should be is an ``OSError`` with a sentence in ``strerror``, or :data:`UNDECODABLE`.
"""

import errno
import os
import stat
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")

MOST_BYTES = 64 << 20
"""Of a file that is read whole. The largest of ours, ``result.json`` of a PPO run, has some hundred kilobytes."""

UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding JSON raises: no JSON or another shape, no UTF-8, nested without end."""

_KINDS = (
    (stat.S_ISDIR, "a directory, not a file"),
    (stat.S_ISFIFO, "a pipe, not a file"),
    (stat.S_ISLNK, "a link, not a file"),
    (stat.S_ISSOCK, "a socket, not a file"),
)


def open_file(path: Path) -> int:
    """A descriptor of a regular file, to read from; never waits for a writer, follows no link.

    Raises:
        FileNotFoundError: there is nothing.
        OSError: it cannot be opened, or is something else than a file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise
        raise _no_file(path, os.lstat(path).st_mode) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _no_file(path, mode)
    return descriptor


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """A whole file.

    Raises:
        OSError: as :func:`open_file`, or it has more than ``most`` bytes.
    """
    with os.fdopen(open_file(path), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most >> 10:,} KiB", str(path))
    return data


def decode_file(path: Path, kind: type[T], most: int = MOST_BYTES) -> T:
    """A JSON file as ``kind``.

    Raises:
        OSError: as :func:`read_file`.
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: :data:`UNDECODABLE`.
    """
    return msgspec.json.decode(read_file(path, most), type=kind)


def why_unreadable(error: Exception) -> str:
    """What is wrong with a file, without its name: of an error that a function of this module raised."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 (byte {error.start})"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _no_file(path: Path, mode: int) -> OSError:
    what = next((text for is_kind, text in _KINDS if is_kind(mode)), "a device, not a file")
    return OSError(errno.EINVAL, what, str(path))
