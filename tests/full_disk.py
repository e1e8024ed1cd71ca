"""A small disk (a tmpfs, which needs root) that a test can fill and free."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 1 << 20
_FILLING = "somebody-elses-file"


class SmallDisk:
    """A mounted tmpfs.

    Attributes:
        path: where it is mounted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, *, leave: int = 0) -> None:
        """Fill it except ``leave`` bytes with a file."""
        descriptor = os.open(self.path / _FILLING, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for size in (MIB, 1 << 16, 4096):
                with contextlib.suppress(OSError):  # full
                    while self.free - size >= leave:
                        os.write(descriptor, bytes(size))
        finally:
            os.close(descriptor)

    def take_inodes(self) -> None:
        """Create files until no inode is left."""
        folder = self.path / "somebody-elses-files"
        with contextlib.suppress(OSError):
            folder.mkdir(exist_ok=True)
            for number in range(1_000_000):
                os.close(os.open(folder / str(number), os.O_WRONLY | os.O_CREAT))

    def clear(self) -> None:
        """Free everything that was filled."""
        (self.path / _FILLING).unlink(missing_ok=True)
        shutil.rmtree(self.path / "somebody-elses-files", ignore_errors=True)

    @property
    def free(self) -> int:
        """Free bytes."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize


@contextmanager
def small_disk(path: Path, size: int = 256 * MIB, inodes: int | None = None) -> Iterator[SmallDisk]:
    """Mount one at ``path``; skips the test where that is not allowed."""
    path.mkdir()
    options = f"size={size},mode=0700" + (f",nr_inodes={inodes}" if inodes else "")
    command = ["mount", "-t", "tmpfs", "-o", options, "stackllama-test", str(path)]
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False)
