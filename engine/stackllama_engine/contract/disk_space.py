"""Room on a disk: how much there is, blocks and inodes, and room that is held back so that last words always fit.

What is held back is allocated with ``fallocate(2)``: a full disk takes it from nobody. Where a file system cannot do
that (NFS before 4.2, ZFS, macOS) nothing is held, and whoever asked is told so.
"""

import contextlib
import ctypes
import errno
import os
import shutil
from pathlib import Path

from msgspec import Struct

from .atomic_files import PRIVATE_DIR, open_private

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What a write fails with that found no room."""

RESERVE = "reserve"
"""In a run's directory while one of its attempts lives: room for the last checkpoint."""

MIB = 1 << 20

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE of <linux/falloc.h>
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.ESPIPE, errno.EPERM})
_LEAST_BYTES = 1 << 16  # a file system with less than this is full, whatever it says
_ROOM = "room"


class Free(Struct, frozen=True):
    """What this user may still write on a file system."""

    bytes: int
    inodes: int | None
    """Files that can still be made; None where the file system does not count them (btrfs reports 0 of 0)."""

    @property
    def is_full(self) -> bool:
        """Whether nothing more can be written, or no file made."""
        return self.bytes < _LEAST_BYTES or self.inodes == 0

    def holds(self, size: int, files: int) -> bool:
        """Whether so many bytes in so many new files fit."""
        return self.bytes >= size and (self.inodes is None or self.inodes >= files)

    def against(self, size: int, files: int) -> str:
        """``3 MiB free of the 12 MiB a checkpoint needs``, or the same of files where those are what lacks."""
        if self.inodes is not None and self.inodes < files and self.bytes >= size:
            return f"{self.inodes} files can still be made of the {files} a checkpoint needs"
        return f"{mib(self.bytes)} free of the {mib(size)} a checkpoint needs"

    def __str__(self) -> str:
        if self.inodes is not None and self.inodes < 1000 and self.bytes >= _LEAST_BYTES:
            return f"{mib(self.bytes)} free, and room for {self.inodes} more files"
        return f"{mib(self.bytes)} free"


def free(path: Path) -> Free:
    """Of the file system of a path.

    Raises:
        OSError: it cannot be told.
    """
    found = os.statvfs(path)
    return Free(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


def mib(size: int) -> str:
    """Bytes in words: whole MiB, and tenths of less than ten."""
    return f"{size / MIB:,.0f} MiB" if size >= 10 * MIB or size == 0 else f"{size / MIB:.1f} MiB"


def is_full(error: BaseException) -> bool:
    """Whether a system call found no room."""
    return isinstance(error, OSError) and error.errno in FULL


def size_of(folder: Path) -> tuple[int, int]:
    """Bytes and number of files and folders below one, itself included."""
    size, count = 0, 1
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # rotated away meanwhile
            size += path.lstat().st_size
            count += 1
    return size, count


def append_whole(path: Path, data: bytes) -> None:
    """Append all of it or nothing.

    Raises:
        OSError: the disk is full or cannot be written; the file is as it was.
    """
    descriptor = open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        before, rest = os.fstat(descriptor).st_size, memoryview(data)
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


def preallocate(descriptor: int, offset: int, length: int) -> bool:
    """Allocate blocks of a file, also behind its end, without changing its size.

    Returns:
        False where the file system cannot. Nothing is emulated by writing, as `posix_fallocate` would.

    Raises:
        OSError: there is no room.
    """
    function = getattr(_LIBRARY, "fallocate", None)
    if function is None:
        return False
    while function(descriptor, _KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        number = ctypes.get_errno()
        if number in _UNSUPPORTED:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


class Reserve:
    """Blocks and inodes held back in a run's directory.

    Args:
        run: the directory.
    """

    def __init__(self, run: Path) -> None:
        self._folder = run / RESERVE

    @property
    def held(self) -> int:
        """Bytes; 0: nothing is held."""
        try:
            return (self._folder / _ROOM).stat().st_blocks * 512
        except OSError:
            return 0

    def hold(self, size: int, files: int) -> bool:
        """Hold so much, in place of what was held; False where the file system cannot.

        Raises:
            OSError: there is no room for it; nothing is held then.
        """
        try:
            self._folder.mkdir(mode=PRIVATE_DIR, exist_ok=True)
            if self.held > size + size // 2:
                (self._folder / _ROOM).unlink()
            descriptor = open_private(self._folder / _ROOM, os.O_WRONLY | os.O_CREAT)
            try:
                able = preallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)
            if able:
                for number in range(files):
                    os.close(open_private(self._folder / f"inode-{number:03d}", os.O_WRONLY | os.O_CREAT))
        except OSError:
            self.release()
            raise
        if not able:
            self.release()
        return able

    def release(self) -> None:
        """Give everything back."""
        shutil.rmtree(self._folder, ignore_errors=True)


_LIBRARY = ctypes.CDLL(None, use_errno=True)
