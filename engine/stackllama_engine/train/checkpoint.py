"""Checkpoints that are whole or do not exist.

A checkpoint is written under a hidden name, its files are fsynced and listed with size and SHA-256 in
``manifest.json``, and only then it is renamed to ``step-000100``. Nothing else is ever resumed from.
"""

import hashlib
import os
import re
import shutil
from pathlib import Path

import msgspec
from msgspec import Struct

from ..contract.files import fsync_directory, write_whole
from .report import Reporter

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{6,})")


class FileSeal(Struct, frozen=True):
    """One file of a checkpoint."""

    size: int
    sha256: str


class Manifest(Struct, frozen=True):
    """``manifest.json`` of a sealed checkpoint."""

    step: int
    files: dict[str, FileSeal]
    format: int = 1


def staging_dir(checkpoints: Path, step: int) -> Path:
    """An empty hidden directory to write a checkpoint into."""
    path = checkpoints / f".tmp-{step:06d}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    return path


def seal(staging: Path, checkpoints: Path, step: int) -> Path:
    """fsync every file, write the manifest, rename. Returns ``checkpoints/step-NNNNNN``.

    Raises:
        OSError: disk full or not writable; no checkpoint of that name appears.
    """
    target = checkpoints / f"step-{step:06d}"
    files = {str(p.relative_to(staging)): _seal_file(p) for p in sorted(staging.rglob("*")) if p.is_file()}
    write_whole(staging / MANIFEST, msgspec.json.encode(Manifest(step=step, files=files)))
    if target.exists():  # the same step was saved before a stop; the newer one holds the same state
        shutil.rmtree(target)
    staging.replace(target)
    fsync_directory(checkpoints)
    return target


def problem(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None when every file is as sealed."""
    try:
        manifest = msgspec.json.decode((checkpoint / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        return "has no manifest"
    except (OSError, msgspec.DecodeError) as error:
        return f"has an unreadable manifest ({error})"
    for name, sealed in manifest.files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"lacks {name}"
        if path.stat().st_size != sealed.size or _digest(path) != sealed.sha256:
            return f"{name} is not as it was sealed"
    return None


def newest(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and what was skipped and why."""
    skipped: list[str] = []
    for path in reversed(_sealed(checkpoints)):
        reason = problem(path)
        if reason is None:
            return path, skipped
        skipped.append(f"checkpoint {path.name} {reason}; skipped")
    return None, skipped


def to_resume(reporter: Reporter) -> Path | None:
    """The checkpoint to go on from, said aloud together with what was skipped."""
    path, skipped = newest(reporter.run.checkpoints)
    for reason in skipped:
        reporter.health(reason)
    if path:
        reporter.health(f"resuming from {path.name}")
    return path


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match, checkpoint
    return int(match[1])


def rotate(checkpoints: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints; called only after a newer one was sealed."""
    for path in _sealed(checkpoints)[:-keep]:
        shutil.rmtree(path)


def _sealed(checkpoints: Path) -> list[Path]:
    return sorted((p for p in checkpoints.iterdir() if _NAME.fullmatch(p.name)), key=step_of)


def _seal_file(path: Path) -> FileSeal:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileSeal(size=path.stat().st_size, sha256=_digest(path))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
