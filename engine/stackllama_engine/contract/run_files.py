"""Readers for the files of a run directory that trust nothing about what is in their place.

A directory, pipe, device or link where a file should be is refused: a link is not followed, a pipe not waited for. The
error is an ``OSError`` with the reason in ``strerror``, or :data:`UNDECODABLE`.
"""

import errno
import os
from pathlib import Path
from typing import TypeVar

import msgspec

from .user_files import open_regular

T = TypeVar("T")

MOST_BYTES = 64 << 20
"""Limit of a file that is read whole. Our largest, ``result.json`` of a PPO run, has some hundred kilobytes."""

UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding JSON raises: not JSON or of another shape, not UTF-8, nested too deeply."""


def open_file(path: Path) -> int:
    """Open a regular file for reading and return its descriptor; a link is refused.

    Raises:
        FileNotFoundError: it does not exist.
        OSError: it cannot be opened, or is not a regular file.
    """
    return open_regular(path, follow_links=False)


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read a whole file.

    Raises:
        OSError: as :func:`open_file`, or it has more than ``most`` bytes.
    """
    with os.fdopen(open_file(path), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most >> 10:,} KiB", str(path))
    return data


def decode_file(path: Path, kind: type[T], most: int = MOST_BYTES) -> T:
    """Decode a JSON file as ``kind``.

    Raises:
        OSError: as :func:`read_file`.
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: :data:`UNDECODABLE`.
    """
    return msgspec.json.decode(read_file(path, most), type=kind)


def why_unreadable(error: Exception) -> str:
    """Return the reason, without the file's name, of an error that a function of this module raised."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 (byte {error.start})"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
