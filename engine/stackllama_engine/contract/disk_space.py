"""Disk space, in bytes and inodes, and a reserve of it for the last writes of a run on a full disk.

The reserve is allocated with ``fallocate(2)``, so that it stays available when the disk is full. On a file system that
cannot do that (NFS before 4.2, ZFS, macOS) nothing is reserved, and the caller is told so.
"""

import contextlib
import errno
import os
import shutil
from pathlib import Path

from msgspec import Struct

from .atomic_files import PRIVATE_DIR, open_private

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors of a write on a full disk."""

RESERVE = "reserve"
"""Directory inside a run's while an attempt is alive: space for the last checkpoint."""

MIB = 1 << 20

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE of <linux/falloc.h>
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.ESPIPE, errno.EPERM})
_LEAST_BYTES = 1 << 16  # a file system with less than this counts as full
_ROOM = "room"


class Free(Struct, frozen=True):
    """Space that this user may still use on a file system."""

    bytes: int
    inodes: int | None
    """Files that can still be created; None if the file system does not count them (btrfs reports 0 of 0)."""

    @property
    def is_full(self) -> bool:
        """Whether nothing more can be written, or no file created."""
        return self.bytes < _LEAST_BYTES or self.inodes == 0

    def holds(self, size: int, files: int) -> bool:
        """Return whether so many bytes in so many new files fit."""
        return self.bytes >= size and (self.inodes is None or self.inodes >= files)

    def against(self, size: int, files: int) -> str:
        """Return ``3 MiB free of the 12 MiB a checkpoint needs``, or the same for inodes if those are short."""
        if self.inodes is not None and self.inodes < files and self.bytes >= size:
            return f"{self.inodes} inodes free of the {files} a checkpoint needs"
        return f"{mib(self.bytes)} free of the {mib(size)} a checkpoint needs"

    def __str__(self) -> str:
        if self.inodes is not None and self.inodes < 1000 and self.bytes >= _LEAST_BYTES:
            return f"{mib(self.bytes)} free, and {self.inodes} inodes"
        return f"{mib(self.bytes)} free"


def free(path: Path) -> Free:
    """Return the free space of the file system of a path.

    Raises:
        OSError: it cannot be determined.
    """
    status = os.statvfs(path)
    return Free(status.f_bavail * status.f_frsize, status.f_favail if status.f_files else None)


def mib(size: int) -> str:
    """Format bytes in MiB, with one decimal below ten."""
    return f"{size / MIB:,.0f} MiB" if size >= 10 * MIB or size == 0 else f"{size / MIB:.1f} MiB"


def is_full(error: BaseException) -> bool:
    """Return whether a system call failed because the disk is full."""
    return isinstance(error, OSError) and error.errno in FULL


def size_of(folder: Path) -> tuple[int, int]:
    """Return the total bytes and the number of entries below a directory, itself included."""
    size, count = 0, 1
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # rotated away meanwhile
            size += path.lstat().st_size
            count += 1
    return size, count


def append_whole(path: Path, data: bytes) -> None:
    """Append all of the data or nothing.

    Raises:
        OSError: the disk is full or not writable; the file is unchanged.
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
    """Allocate blocks of a file, also beyond its end, without changing its size.

    Returns:
        False if the file system cannot. It is not emulated by writing, as `posix_fallocate` would.

    Raises:
        OSError: the disk is full.
    """
    import ctypes  # the console imports this module, and starts without this one

    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
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
    """Blocks and inodes reserved in a run's directory.

    Args:
        run: the directory.
    """

    def __init__(self, run: Path) -> None:
        self._folder = run / RESERVE

    @property
    def held(self) -> int:
        """Reserved bytes; 0 if there is no reserve."""
        try:
            return (self._folder / _ROOM).stat().st_blocks * 512
        except OSError:
            return 0

    def hold(self, size: int, files: int) -> bool:
        """Reserve so much, in place of the previous reserve; return False if the file system cannot.

        Raises:
            OSError: there is no room for it; nothing is reserved then.
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
        """Release the reserve."""
        shutil.rmtree(self._folder, ignore_errors=True)
