"""Fault tolerance of PPO: steps that cannot be finished, and the canary that finds out early what cannot.

- A stop in the middle of a step abandons it: nothing of it stays, the state at the last boundary is saved, and the
  resumed run makes the same step again.
- Out of memory on any rank: every rank begins the phase again with half as many rows at once
  (:class:`..faults.BatchSizes`).
- A step that is not finite, or none of whose mini-batches could be applied, is skipped. After ``max_skipped_steps``
  of them in a row the weights themselves are in doubt: back to the newest verified checkpoint (or the start) with
  half the learning rate, because with the same one the same would happen again. After ``max_rollbacks`` of that, the
  run ends.
- The canary is the worst case once, before a run proper: longest prompt, longest responses, one update, one checkpoint.
  What would end the run for want of memory or disk at hour nine ends it in its first minutes instead. Nothing of it
  stays: policy, value head, optimizer and checkpoints are afterwards what they were before, so that a run with a canary
  and one without are the same, bit for bit.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from ...contract.errors import StageError
from ...contract.recipe import PPORecipe
from ...contract.run_dir import RunDir
from .. import checkpoint
from ..control import LeftEarly
from ..faults import BatchSizes, memory_that_ran_out
from ..session import SCRATCH, Session
from .prompts import Prompts
from .sampling import Noise
from .state import Evaluations, Trainables

T = TypeVar("T")

CANARY = "STACKLLAMA_CANARY"
"""Environment variable that is ``1`` in an attempt that begins with a canary."""
NO_END: tuple[int, ...] = ()
"""No token ends a response: each is as long as its noise."""


class Abandoned(Exception):
    """A stop was requested in the middle of a step or an evaluation; raised on every rank alike."""


class RunOnAllRanks:
    """Runs a phase on every rank until it fits, or until a stop is wanted.

    Args:
        session: its requests ask all ranks at the end of a phase.
        batch_sizes: micro-batch sizes, made smaller when memory runs out.
    """

    def __init__(self, session: Session, batch_sizes: BatchSizes) -> None:
        self._session = session
        self._requests = session.requests
        self._batch_sizes = batch_sizes

    def __call__(self, work: Callable[[], T]) -> T:
        """Run ``work``, which holds no collective and calls ``requests.leave_early`` between its pieces.

        Returns:
            its result.

        Raises:
            Abandoned: a stop is wanted.
            StageError: memory ran out with one response per micro-batch; or ``work`` raised it: on every rank, that of
                the first rank.
        """
        while True:
            results: list[T] = []
            failed, problem = False, ""
            try:
                results.append(work())
            except LeftEarly:
                pass  # the others learn of the stop below
            except StageError as error:
                problem = str(error)
            except Exception as error:
                if memory_that_ran_out(error) is None:
                    raise
                failed = True
            agreed = self._requests.agree(failed, problem=bool(problem))
            if agreed.problem:
                raise StageError(next(text for text in self._session.gather([problem]) if text))
            if agreed.stop:
                raise Abandoned
            if not agreed.failed:
                return results[0]
            del results
            self._batch_sizes.halve_rollout_micro_batch()

    def check_stop(self) -> None:
        """Abandon the update on every rank when a stop is wanted (a collective).

        Raises:
            Abandoned: a stop is wanted.
        """
        if self._requests.agree(failed=False).stop:
            raise Abandoned


def canary_is_wanted() -> bool:
    """Return whether this attempt begins with a canary."""
    return os.environ.get(CANARY) == "1"


def longest_prompt(prompts: Prompts) -> int:
    """Return the position of the longest prompt in the first pass over the data."""
    return max(range(len(prompts)), key=lambda position: len(prompts.at(position).ids))


def canary_noise(recipe: PPORecipe) -> list[Noise]:
    """Draw noise of responses as long as the recipe allows."""
    length = recipe.longest_response
    generator = torch.Generator().manual_seed(recipe.seed)
    return [
        Noise(length, torch.rand(length, generator=generator, dtype=torch.float64))
        for _ in range(recipe.local_batch_size)
    ]


@contextmanager
def untouched(trainables: Trainables) -> Iterator[None]:
    """Restore afterwards whatever is trained inside; the optimizer must not have made a step yet."""
    before = trainables.snapshot()
    assert not before.optimizer[0]
    try:
        yield
    finally:
        trainables.restore(before)


def write_trial_checkpoint(trainables: Trainables, run: RunDir, rows: Sequence[object], keep: int) -> int:
    """Write and seal a checkpoint in a scratch directory, and remove it.

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
