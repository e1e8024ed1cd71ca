"""Files that belong to others, as :mod:`..contract.user_files` opens them, and what Git LFS leaves in their place."""

from pathlib import Path

from stackllama_engine.contract.user_files import open_file

_MOST_POINTER = 1024  # bytes, by its specification


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
        OSError: as `open_file`.
    """
    with open_file(path) as file:
        data = file.read(most + 1)
    return data if len(data) <= most else None
