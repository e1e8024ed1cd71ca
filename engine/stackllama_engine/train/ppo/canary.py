"""The worst case once, before a run proper: longest prompt, longest responses, one update, one checkpoint.

What would end the run for want of memory or disk at hour nine ends it in its first minutes instead. Nothing of it
stays: policy, value head, optimizer and checkpoints are afterwards what they were before, so that a run with a canary
and one without are the same, bit for bit.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ...contract.errors import StageError
from ...contract.recipe import PPORecipe
from ...contract.run_dir import RunDir
from .. import checkpoint
from ..session import SCRATCH
from .prompts import Prompts
from .sampling import Noise
from .state import Evaluations, Trainables

CANARY = "STACKLLAMA_CANARY"
"""``1`` in the environment of an attempt that begins with it."""
NO_END = -1
"""No token ends a response: each is as long as its noise."""


def asked() -> bool:
    """Whether this attempt begins with a canary."""
    return os.environ.get(CANARY) == "1"


def longest(prompts: Prompts) -> int:
    """Position of the longest prompt in the first pass over the data."""
    return max(range(len(prompts)), key=lambda position: len(prompts.at(position).ids))


def noise(recipe: PPORecipe) -> list[Noise]:
    """Of responses as long as the recipe allows."""
    length = recipe.longest_response
    generator = torch.Generator().manual_seed(recipe.seed)
    return [
        Noise(length, torch.rand(length, generator=generator, dtype=torch.float64))
        for _ in range(recipe.local_batch_size)
    ]


@contextmanager
def untouched(trainables: Trainables) -> Iterator[None]:
    """Whatever is trained inside is afterwards as before; the optimizer must not have made a step yet."""
    before = trainables.snapshot()
    assert not before.optimizer[0]
    try:
        yield
    finally:
        trainables.restore(before)


def write_checkpoint(trainables: Trainables, run: RunDir, rows: Sequence[object], keep: int) -> int:
    """Write and seal a checkpoint where none is looked for, and remove it.

    Returns:
        its size in bytes.

    Raises:
        OSError: the disk is full.
        StageError: there is room for one, and not for as many as the recipe keeps.
    """
    folder = run.path / SCRATCH / "canary"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    try:
        staging = checkpoint.staging_dir(folder, 0)
        trainables.write(staging, 0, Evaluations({"rows": list(rows)}))
        sealed = checkpoint.seal(staging, folder, 0)
        size = sum(path.stat().st_size for path in sealed.iterdir())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    need, free = (keep + 1) * size, shutil.disk_usage(run.path).free  # a new one is whole before an old one goes
    if need > free:
        raise StageError(
            f"The disk has {free / (1 << 30):.1f} GiB free, and {keep + 1} checkpoints of {size / (1 << 20):.0f} MiB "
            f"need {need / (1 << 30):.1f} GiB: lower `save_total_limit`, or make room under {run.path}."
        )
    return size
