"""Readers for files that people wrote, were given or downloaded; none of them ever blocks.

A pipe or a terminal would be waited on for ever, and a device such as ``/dev/zero`` never ends. So only regular files
are opened, without waiting, and no more is read than a file of that kind can hold. Only a recipe may also come from a
pipe (``<(command)``), which is given a few seconds. What is refused is an :class:`OSError`, which every caller that
reads a file reports anyway.
"""

import errno
import os
import select
import stat
import time
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import msgspec

MIB = 1 << 20
MOST_CONFIG = 4 * MIB
"""Limit in bytes of a model's or an adapter's JSON files, except its tokenizer's."""
MOST_HEADER = 100_000_000
"""Limit in bytes of a safetensors file's header, as its format defines it."""
_PIPE_SECONDS = 10.0
_POLL_MILLISECONDS = 100
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device or a terminal"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a link"),
)
_T = TypeVar("_T")


class UnsuitableFileError(OSError):
    """Not a file that is read here; ``strerror`` is the reason, to be put after the file's name."""

    def __str__(self) -> str:
        return str(self.strerror)


def open_regular(path: Path, *, follow_links: bool = True) -> int:
    """Open a regular file for reading and return its descriptor.

    Raises:
        OSError: missing, not permitted, not a regular file, or a link that is not to be followed.
    """
    descriptor = _open(path, follow_links=follow_links)
    try:
        _require(path, descriptor, regular=True)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading, as ``path.open("rb")`` would.

    Raises:
        OSError: as :func:`open_regular`.
    """
    return os.fdopen(open_regular(path), "rb")


def read_bytes(path: Path, most: int, *, pipe: bool = False) -> bytes:
    """Read a whole file.

    Args:
        path: the file.
        most: limit in bytes; a larger file is refused.
        pipe: read a pipe as well, for at most ten seconds.

    Raises:
        OSError: missing, not permitted, too large, or not a regular file.
    """
    descriptor = _open(path)
    try:
        _require(path, descriptor, regular=not pipe)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(most + 1)
        else:
            data = _read_pipe(path, descriptor, most)
    finally:
        os.close(descriptor)
    if len(data) > most:
        size = f"{most // MIB} MiB" if most >= MIB else f"{most // 1024} KiB"
        raise UnsuitableFileError(errno.EFBIG, f"larger than any file of this kind (at most {size})", str(path))
    return data


def read_text(path: Path, most: int, *, pipe: bool = False) -> str:
    """Read a whole UTF-8 file; see :func:`read_bytes`.

    Raises:
        OSError: as :func:`read_bytes`.
        UnicodeDecodeError: not UTF-8.
    """
    return read_bytes(path, most, pipe=pipe).decode("utf-8")


def read_json(path: Path, kind: type[_T], most: int = MOST_CONFIG) -> _T:
    """Decode a JSON file as a type.

    Raises:
        OSError: as :func:`read_bytes`.
        ValueError: not JSON, not of that type, or nested too deeply.
    """
    return decode_json(read_bytes(path, most), kind)


def decode_json(data: bytes, kind: type[_T]) -> _T:
    """Decode JSON as a type.

    Raises:
        ValueError: not JSON, not of that type, or nested too deeply.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _open(path: Path, *, follow_links: bool = True) -> int:
    """Open without waiting for a pipe's writer, and without acquiring a terminal."""
    links = 0 if follow_links else os.O_NOFOLLOW
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | links)
    except OSError as error:
        if error.errno == errno.ENXIO or (error.errno == errno.ELOOP and links):  # a socket; a link
            raise _unsuitable(path, path.stat(follow_symlinks=follow_links).st_mode) from None
        raise


def _require(path: Path, descriptor: int, *, regular: bool) -> None:
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or (not regular and stat.S_ISFIFO(mode))):
        raise _unsuitable(path, mode)


def _unsuitable(path: Path, mode: int) -> UnsuitableFileError:
    kind = next((name for matches, name in _KINDS if matches(mode)), "something else")
    return UnsuitableFileError(errno.EINVAL, f"{kind}, not a regular file", str(path))


def _read_pipe(path: Path, descriptor: int, most: int) -> bytes:
    """Read until the writer closes the pipe. One that has no writer yet ends at once, and is read again."""
    data = bytearray()
    deadline = time.monotonic() + _PIPE_SECONDS
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while len(data) <= most:
        if time.monotonic() > deadline:
            reason = "nothing was written to this pipe" if not data else "this pipe was not closed by its writer"
            raise UnsuitableFileError(errno.ETIMEDOUT, f"{reason} for {_PIPE_SECONDS:.0f} s", str(path))
        try:
            block = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            poll.poll(_POLL_MILLISECONDS)
            continue
        if not block and data:
            break
        if not block:
            time.sleep(_POLL_MILLISECONDS / 1000)
        data += block
    return bytes(data)


def any_object(path: Path, most: int = MOST_CONFIG) -> dict[str, Any]:
    """Decode a JSON file that holds an object of any keys.

    Raises:
        OSError, ValueError: as :func:`read_json`.
    """
    return read_json(path, dict[str, Any], most)
