"""Files of other programs, opened by :mod:`..contract.user_files`, and Git LFS pointers in their place."""

from pathlib import Path

from stackllama_engine.contract.user_files import open_file

_MOST_POINTER = 1024  # bytes, by its specification


def is_lfs_pointer(path: Path) -> bool:
    """Return whether the file is a pointer of Git LFS (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)."""
    try:
        if path.stat().st_size > _MOST_POINTER:
            return False
        return (read_whole(path, _MOST_POINTER) or b"").startswith(b"version https://git-lfs.github.com/spec/")
    except OSError:  # reported by whoever reads it
        return False


def read_whole(path: Path, most: int) -> bytes | None:
    """Read a whole file; None where it is larger than ``most`` bytes.

    Raises:
        OSError: as `open_file`.
    """
    with open_file(path) as file:
        data = file.read(most + 1)
    return data if len(data) <= most else None
