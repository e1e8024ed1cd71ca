"""What makes a checkpoint trustworthy, for whoever resumes from one or only looks: no torch.

A sealed checkpoint is ``checkpoints/step-000100`` with a ``manifest.json`` that lists every file with size and SHA-256
(``train/checkpoint.py`` writes it). One that lacks a file, has a changed one or holds one that was not sealed is not
resumed from.
"""

import hashlib
import os
import re
from pathlib import Path

from msgspec import Struct

from .run_files import UNDECODABLE, decode_file, open_file, why_unreadable

MANIFEST = "manifest.json"
UNSEALED = ".tmp-"
"""How the name of whatever is not a checkpoint yet, or no more, begins."""

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
    """What was measured at this step; it decides which checkpoint is the best, also after a resume."""
    by_time: bool = False
    """Whether only the clock asked for it (`save_minutes`)."""

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.size for file in self.files.values())


def problem(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None when it holds what was sealed and nothing else."""
    try:
        manifest = read_manifest(checkpoint)
        if checkpoint.is_symlink():
            return "is a link"
        if manifest.step != step_of(checkpoint):
            return f"has the manifest of step {manifest.step}"
        there = {str(path.relative_to(checkpoint)): path for path in checkpoint.rglob("*") if not _is_folder(path)}
        del there[MANIFEST]
        for name in manifest.files.keys() - there.keys():
            return f"lacks {name}"
        for name in sorted(there):
            if reason := _file_problem(there[name], name, manifest.files.get(name)):
                return reason
    except FileNotFoundError as error:
        return "has no manifest" if str(error.filename).endswith(MANIFEST) else f"lacks {error.filename}"
    except UNDECODABLE as error:
        return f"has an unreadable manifest ({why_unreadable(error)})"
    except OSError as error:
        return f"cannot be read ({why_unreadable(error)})"
    return None


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest, unchecked.

    Raises:
        OSError, and those of ``UNDECODABLE``: there is none that can be read.
    """
    return decode_file(checkpoint / MANIFEST, Manifest)


def sealed(checkpoints: Path) -> list[Path]:
    """What is named as a checkpoint, oldest first, whether or not it verifies."""
    if not checkpoints.is_dir():
        return []
    return sorted((path for path in checkpoints.iterdir() if _NAME.fullmatch(path.name)), key=step_of)


def newest(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and what was skipped and why."""
    skipped: list[str] = []
    for path in reversed(sealed(checkpoints)):
        reason = problem(path)
        if reason is None:
            return path, skipped
        skipped.append(f"checkpoint {path.name} {reason}; skipped")
    return None, skipped


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match, checkpoint
    return int(match[1])


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
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
