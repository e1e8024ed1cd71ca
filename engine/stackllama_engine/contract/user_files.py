"""Opening files that people wrote, were given or downloaded: whatever lies under the name, nobody hangs on it.

A pipe or a terminal would be waited on for ever, a device such as ``/dev/zero`` never ends. So only regular files are
opened, without waiting, and no more is read than a file of that kind can hold. A recipe alone may also come from a
pipe (``<(command)``), which is given a few seconds. What is refused is an :class:`OSError`, which every reader of a
file reports in any case.
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
"""Bytes of a model's or an adapter's JSON files, but for its tokenizer."""
MOST_HEADER = 100_000_000
"""Bytes of a safetensors file's header, by its format."""
_PIPE_SECONDS = 10.0
_POLL_MILLISECONDS = 100
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device or a terminal"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
_T = TypeVar("_T")


class UnsuitableFileError(OSError):
    """Not a file that is read here; ``strerror`` says why, in words that go on after a file's name."""

    def __str__(self) -> str:
        return str(self.strerror)


def open_regular(path: Path) -> int:
    """A descriptor to read from.

    Raises:
        OSError: missing, not permitted, or not a regular file.
    """
    descriptor = _open(path)
    try:
        _require(path, descriptor, regular=True)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_file(path: Path) -> BufferedReader:
    """A regular file to read from, as ``path.open("rb")`` gives any.

    Raises:
        OSError: as :func:`open_regular`.
    """
    return os.fdopen(open_regular(path), "rb")


def read_bytes(path: Path, most: int, *, pipe: bool = False) -> bytes:
    """All of a file.

    Args:
        path: the file.
        most: bytes; a larger one is refused.
        pipe: a pipe is read as well, for at most ten seconds.

    Raises:
        OSError: missing, not permitted, too large, or not such a file.
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
        raise UnsuitableFileError(errno.EFBIG, f"it is larger than any such file ({size} at most)", str(path))
    return data


def read_text(path: Path, most: int, *, pipe: bool = False) -> str:
    """As :func:`read_bytes`, in UTF-8.

    Raises:
        OSError: as there.
        UnicodeDecodeError: other bytes.
    """
    return read_bytes(path, most, pipe=pipe).decode("utf-8")


def read_json(path: Path, kind: type[_T], most: int = MOST_CONFIG) -> _T:
    """What a JSON file holds, as a type.

    Raises:
        OSError: as :func:`read_bytes`.
        ValueError: not JSON, not of that type, or nested too deep.
    """
    return decode_json(read_bytes(path, most), kind)


def decode_json(data: bytes, kind: type[_T]) -> _T:
    """JSON as a type.

    Raises:
        ValueError: not JSON, not of that type, or nested too deep.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _open(path: Path) -> int:
    """Without waiting for somebody who writes into a pipe, and without making a terminal one's own."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)


def _require(path: Path, descriptor: int, *, regular: bool) -> None:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or (not regular and stat.S_ISFIFO(mode)):
        return
    what = next((name for matches, name in _KINDS if matches(mode)), "something else")
    raise UnsuitableFileError(errno.EINVAL, f"it is {what}, not a regular file", str(path))


def _read_pipe(path: Path, descriptor: int, most: int) -> bytes:
    """Until its writer has closed it. One that nobody has opened to write yet ends at once, and is asked again."""
    data = bytearray()
    deadline = time.monotonic() + _PIPE_SECONDS
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while len(data) <= most:
        if time.monotonic() > deadline:
            said = "nobody has written to this pipe" if not data else "this pipe was not closed by who writes to it"
            raise UnsuitableFileError(errno.ETIMEDOUT, f"{said} for {_PIPE_SECONDS:.0f} s", str(path))
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
    """A JSON object of whatever keys.

    Raises:
        OSError, ValueError: as :func:`read_json`.
    """
    return read_json(path, dict[str, Any], most)
