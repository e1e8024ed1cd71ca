"""Checkpoints that are whole or do not exist, and which of them stay.

A checkpoint is written under a hidden name, its files are fsynced and listed with size and SHA-256 in
``manifest.json``, and only then it is renamed to ``step-000100``. Nothing else is ever resumed from, and what is left
of one that was never sealed is removed when the next attempt begins. What verifies: :mod:`..contract.checkpoints`.
"""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from ..contract.atomic_files import fsync_directory, write_whole
from ..contract.checkpoints import (
    MANIFEST,
    UNSEALED,
    FileSeal,
    Manifest,
    digest,
    newest,
    problem,
    read_manifest,
    sealed,
    step_of,
)
from ..contract.errors import StageError
from ..contract.recipe import TrainRecipe
from ..contract.resuming import changes, remember
from .reporting import Reporter

__all__ = ["Retention", "newest", "problem", "publish", "rotate", "seal", "staging_dir", "step_of", "to_resume"]

_REPLACED = ".replaced-"
"""Prefix of a checkpoint's name while another checkpoint of the same step takes its place."""


class Retention(Struct, frozen=True, kw_only=True):
    """Rule for the checkpoints that stay: the newest, milestones, and the best by one metric."""

    newest: int | None
    """None: all of them, but of those that only the clock asked for none but the newest: a run's hours are unknown, and
    so would be the room that they take."""
    every: int = 0
    """Milestones: steps that are a multiple of this one; 0: none."""
    metric: str | None = None
    greater_is_better: bool = True

    @classmethod
    def of(cls, recipe: TrainRecipe) -> "Retention":
        """Read the rule from a recipe; as in transformers, a metric that ends in `loss` is better when it is lower."""
        metric, greater = recipe.metric_for_best_model, recipe.greater_is_better
        if greater is None:
            greater = not (metric or "").endswith("loss")
        return cls(
            newest=recipe.save_total_limit, every=recipe.keep_every_steps, metric=metric, greater_is_better=greater
        )

    def at_most(self, steps: int, save_every: int = 1) -> int:
        """Return the largest number of checkpoints that a run leaves.

        Args:
            steps: of the run.
            save_every: steps from one checkpoint to the next; 0: one only, when it stops.
        """
        if self.newest is None:
            return 1 + (steps // save_every if save_every else 0)
        return self.newest + (self.metric is not None) + (steps // self.every if self.every else 0)

    def chosen(self, checkpoints: Sequence[Path]) -> list[Path]:
        """Select those that stay from all, oldest first."""
        best = self._best(checkpoints)
        if self.newest is None:
            return [path for path in checkpoints if path == checkpoints[-1] or path == best or not _is_by_time(path)]
        recent = checkpoints[-self.newest :]
        return [
            path
            for path in checkpoints
            if path in recent or path == best or (self.every and step_of(path) % self.every == 0)
        ]

    def _best(self, checkpoints: Sequence[Path]) -> Path | None:
        """Return the best by the metric; the newest of equals."""
        if self.metric is None:
            return None
        values: list[tuple[float, int, Path]] = []
        for path in checkpoints:
            try:
                value = read_manifest(path).metrics.get(self.metric)
            except (OSError, msgspec.DecodeError):  # damaged: whatever it was, it is not the best
                continue
            if value is not None:
                values.append((value if self.greater_is_better else -value, step_of(path), path))
        return max(values)[2] if values else None


def _is_by_time(path: Path) -> bool:
    try:
        return read_manifest(path).by_time
    except (OSError, msgspec.DecodeError):  # damaged: nobody deletes it for what it may be
        return False


def size(checkpoints: Path, step: int) -> int | None:
    """Read the size in bytes of the checkpoint of a step; None where there is none."""
    try:
        return read_manifest(checkpoints / f"step-{step:06d}").size
    except (OSError, msgspec.DecodeError):
        return None


def staging_dir(checkpoints: Path, step: int) -> Path:
    """Make an empty hidden directory to write a checkpoint into."""
    path = checkpoints / f"{UNSEALED}{step:06d}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    return path


def publish(reporter: Reporter, staging: Path, step: int, keep: Retention, *, by_time: bool = False) -> Path:
    """Seal what was written, report it, and delete what need not stay; rank 0 only.

    Args:
        reporter: of rank 0.
        staging: the written files.
        step: steps done.
        keep: which checkpoints stay.
        by_time: only the clock asked for it: a missing metric at this step is expected.

    Raises:
        OSError: disk full or not writable; every checkpoint from before is untouched.
    """
    checkpoints, metrics = reporter.run.checkpoints, reporter.metrics_at(step)
    if reporter.recipe is not None:
        remember(staging, reporter.recipe)
    target = seal(staging, checkpoints, step, metrics, by_time=by_time)
    reporter.checkpoint(step, str(target.relative_to(reporter.run.path)))
    if keep.metric is not None and keep.metric not in metrics and not by_time:
        there = ", ".join(sorted(metrics)) or "none"
        reporter.health(f"no `{keep.metric}` was measured at step {step}, so it cannot be the best ({there})")
    for reason in rotate(checkpoints, keep):
        reporter.health(reason)
    return target


def seal(
    staging: Path, checkpoints: Path, step: int, metrics: Mapping[str, float] | None = None, *, by_time: bool = False
) -> Path:
    """Fsync every file, write the manifest, rename; return ``checkpoints/step-NNNNNN``.

    Args:
        staging: the written files, on the file system of ``checkpoints``.
        checkpoints: the run's.
        step: steps done.
        metrics: measured at this step; NaN and infinity are no measurement.
        by_time: see :class:`Manifest`.

    Raises:
        OSError: disk full or not writable; no checkpoint of that name appears.
    """
    target = checkpoints / f"step-{step:06d}"
    files = {str(p.relative_to(staging)): _seal_file(p) for p in sorted(staging.rglob("*")) if p.is_file()}
    for folder in (path for path in staging.rglob("*") if path.is_dir()):
        fsync_directory(folder)
    finite = {name: value for name, value in (metrics or {}).items() if math.isfinite(value)}
    manifest = Manifest(step=step, files=files, metrics=finite, by_time=by_time)
    write_whole(staging / MANIFEST, msgspec.json.encode(manifest))
    replaced = checkpoints / f"{_REPLACED}{target.name}"
    if target.is_symlink():
        target.unlink()
    elif target.exists():  # of this step there is one that was passed over, or from before a stop
        target.rename(replaced)
    staging.replace(target)
    fsync_directory(checkpoints)
    shutil.rmtree(replaced, ignore_errors=True)
    return target


def to_resume(reporter: Reporter, recipe: TrainRecipe | None = None) -> Path | None:
    """Return the checkpoint to resume from; report it, what was skipped, and how the recipe changed since.

    What was never sealed is removed.

    Raises:
        StageError: the recipe changed in what cannot change within a run.
    """
    reporter.recipe = recipe
    checkpoints = reporter.run.checkpoints
    if reporter.is_main:
        _put_back(checkpoints)
        for path in checkpoints.glob(f"{UNSEALED}*"):
            shutil.rmtree(path)
            reporter.health(f"removed {path.name}, an incomplete checkpoint")
    path, skipped = newest(checkpoints)
    for reason in skipped:
        reporter.health(reason)
    if path:
        reporter.health(f"resuming from {path.name}")
        _compare(path, recipe, reporter)
    return path


def _compare(path: Path, recipe: TrainRecipe | None, reporter: Reporter) -> None:
    """Report how the recipe changed since a checkpoint.

    Raises:
        StageError: in what cannot change within a run.
    """
    differences = changes(path, recipe) if recipe else None
    if differences and (refusal := differences.refusal()):
        raise StageError(refusal)
    if differences and (notice := differences.notice()):
        reporter.health(notice)


def rotate(checkpoints: Path, keep: Retention) -> list[str]:
    """Delete what need not stay, once something that stays has been read back and verified.

    Returns:
        Sentences on what is damaged, when nothing of what should stay verifies; the newest that does is kept then.
    """
    every = sealed(checkpoints)
    stay = keep.chosen(every)
    doomed = [path for path in every if path not in stay]
    damaged: list[str] = []
    if doomed and (reasons := _damage(stay)) is not None:
        damaged = [f"checkpoint {reason}" for reason in reasons]
        last = next((path for path in reversed(doomed) if problem(path) is None), None)
        if last is not None:
            doomed.remove(last)
            damaged.append(f"{last.name} stays: it is the newest that verifies")
    for path in doomed:
        _discard(path)
    return damaged


def _damage(paths: Sequence[Path]) -> list[str] | None:
    """Describe what is wrong with each, newest first; return None as soon as one verifies."""
    problems: list[str] = []
    for path in reversed(paths):
        reason = problem(path)
        if reason is None:
            return None
        problems.append(f"{path.name} {reason}")
    return problems


def _put_back(checkpoints: Path) -> None:
    """Give a checkpoint its name back whose replacement was killed between two renames; remove any other."""
    for path in checkpoints.glob(f"{_REPLACED}*"):
        target = checkpoints / path.name.removeprefix(_REPLACED)
        if target.exists():
            shutil.rmtree(path)
        else:
            path.rename(target)


def _discard(path: Path) -> None:
    """Delete a checkpoint, renamed first: a crash in the middle leaves no partial one that would be resumed from."""
    if path.is_symlink():
        path.unlink()
        return
    gone = path.with_name(f"{UNSEALED}old-{path.name}")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone)


def _seal_file(path: Path) -> FileSeal:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileSeal(size=path.stat().st_size, sha256=digest(path))
