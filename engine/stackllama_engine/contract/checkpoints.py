"""Verification of checkpoints, without torch.

A sealed checkpoint is ``checkpoints/step-000100`` with a ``manifest.json`` that lists every file with size and SHA-256
(``train/checkpoint.py`` writes it). A checkpoint with a missing, changed or additional file is not resumed from.
"""

import hashlib
import os
import re
from pathlib import Path

from msgspec import Struct

from .run_files import UNDECODABLE, decode_file, open_file, why_unreadable

MANIFEST = "manifest.json"
UNSEALED = ".tmp-"
"""Prefix of the name of a checkpoint that is being written or removed."""

_NAME = re.compile(r"step-([0-9]{6,15})")


class FileSeal(Struct, frozen=True):
    """One file of a checkpoint."""

    size: int
    sha256: str


class Manifest(Struct, frozen=True):
    """``manifest.json`` of a sealed checkpoint."""

    step: int
    files: dict[str, FileSeal]
    format: int = 1
    metrics: dict[str, float] = {}
    """Metrics at this step; they decide which checkpoint is the best, also after a resume."""
    by_time: bool = False
    """Whether it was saved because of `save_minutes` alone."""

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files.values())


def problem(checkpoint: Path) -> str | None:
    """Return why a checkpoint is not valid; None if it holds exactly the files that were sealed."""
    try:
        manifest = read_manifest(checkpoint)
        if checkpoint.is_symlink():
            return "is a link"
        if manifest.step != step_of(checkpoint):
            return f"has the manifest of step {manifest.step}"
        files = {str(path.relative_to(checkpoint)): path for path in checkpoint.rglob("*") if not _is_folder(path)}
        del files[MANIFEST]
        for name in manifest.files.keys() - files.keys():
            return f"lacks {name}"
        for name in sorted(files):
            if reason := _file_problem(files[name], name, manifest.files.get(name)):
                return reason
    except FileNotFoundError as error:
        return "has no manifest" if str(error.filename).endswith(MANIFEST) else f"lacks {error.filename}"
    except UNDECODABLE as error:
        return f"has an unreadable manifest ({why_unreadable(error)})"
    except OSError as error:
        return f"cannot be read ({why_unreadable(error)})"
    return None


def read_manifest(checkpoint: Path) -> Manifest:
    """Read the manifest, without verifying it.

    Raises:
        OSError, or one of ``UNDECODABLE``: it is missing or unreadable.
    """
    return decode_file(checkpoint / MANIFEST, Manifest)


def sealed(checkpoints: Path) -> list[Path]:
    """List entries with a checkpoint's name, oldest first, whether or not they verify."""
    if not checkpoints.is_dir():
        return []
    return sorted((path for path in checkpoints.iterdir() if _NAME.fullmatch(path.name)), key=step_of)


def newest(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that verifies, and which were skipped and why."""
    skipped: list[str] = []
    for path in reversed(sealed(checkpoints)):
        reason = problem(path)
        if reason is None:
            return path, skipped
        skipped.append(f"checkpoint {path.name} {reason}; skipped")
    return None, skipped


def step_of(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match, checkpoint
    return int(match[1])


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with os.fdopen(open_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _file_problem(path: Path, name: str, seal: FileSeal | None) -> str | None:
    if seal is None:
        return f"holds {name}, which was not sealed"
    if path.is_symlink() or not path.is_file():
        return f"{name} is not a file"
    if path.stat().st_size != seal.size or digest(path) != seal.sha256:
        return f"{name} is not as it was sealed"
    return None
