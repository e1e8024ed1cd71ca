"""Failures that training survives: out of memory, a full disk, and steps that cannot be applied.

Out of memory: every rank halves its micro-batches and doubles their number, so that the effective batch stays. At one
row per micro-batch there is nothing left to halve, and the stage ends.
"""

import errno
import gc
from collections.abc import Callable
from contextlib import suppress

import torch

from ..contract.errors import StageError
from ..contract.recipe import PPORecipe
from .pending_writes import is_disk_full
from .reporting import Reporter

__all__ = [
    "BatchSizes",
    "RollbackPolicy",
    "free_memory",
    "is_disk_full",
    "memory_that_ran_out",
    "smaller_micro_batch",
    "smaller_token_limit",
]

_GPU_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA out of memory")
_CPU_FULL = "DefaultCPUAllocator: can't allocate memory"


def memory_that_ran_out(error: BaseException) -> str | None:
    """Return which memory an allocation failed in; None: the error is of another kind."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or any(sign in text for sign in _GPU_FULL):
        return "GPU memory"
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or _CPU_FULL in text:
        return "memory"
    return None


def free_memory() -> None:
    """Give back what the failed attempt left behind; the caller holds no reference to its traceback any more."""
    gc.collect()
    with suppress(RuntimeError):  # a device that is lost says so again, and better, at its next use
        torch.cuda.empty_cache()


def smaller_micro_batch(micro_batch_size: int, accumulation: int) -> tuple[int, int]:
    """Return a micro-batch size of at most half, and the accumulation steps that keep the effective batch.

    For a power of two, exactly half and double.
    """
    total = micro_batch_size * accumulation
    half = next(size for size in range(max(micro_batch_size // 2, 1), 0, -1) if total % size == 0)
    return half, total // half


def smaller_token_limit(tokens: int, longest: int) -> int:
    """Return half as many tokens per micro-batch, but no fewer than its longest row, or pair, has."""
    return max(tokens // 2, min(tokens, longest))


class BatchSizes:
    """Micro-batch sizes of PPO that fit into memory: the recipe's, until memory ran out.

    Args:
        recipe: the PPO recipe.
        reporter: where each change is recorded.
        note: receives the recipe keys that changed, for later attempts.
    """

    def __init__(self, recipe: PPORecipe, reporter: Reporter, note: Callable[..., None] = lambda **_: None) -> None:
        self.micro_batch_size = recipe.micro_batch_size
        """Responses per micro-batch of the update."""
        self.micro_batch_tokens = recipe.max_tokens_per_micro_batch
        """Most tokens per micro-batch of update and scoring, padding included, instead; None: they count responses."""
        self.accumulation = recipe.gradient_accumulation_steps
        """Micro-batches per optimizer step."""
        self.rollout_micro_batch_size = recipe.local_rollout_forward_batch_size
        """Responses per micro-batch of sampling and scoring."""
        self._longest = recipe.longest_sequence
        self._reporter = reporter
        self._note = note

    def halve_micro_batch(self) -> None:
        """Halve the micro-batches of the update, on this rank as on every other.

        Raises:
            StageError: they hold one response already.
        """
        if self.micro_batch_tokens is not None and self._halve_tokens(self.micro_batch_tokens):
            return
        if self.micro_batch_tokens is not None or self.micro_batch_size == 1:
            raise StageError(
                f"Out of memory in phase {self._reporter.current_phase} with micro-batches of one response. Use "
                "`gradient_checkpointing: true`, `base_precision: nf4` or a smaller `response_length`."
            )
        before = (self.micro_batch_size, self.accumulation)
        self.micro_batch_size, self.accumulation = smaller_micro_batch(*before)
        self._note(per_device_train_batch_size=self.micro_batch_size, gradient_accumulation_steps=self.accumulation)
        self._reporter.health(
            f"out of memory in phase {self._reporter.current_phase}: from now on `per_device_train_batch_size: "
            f"{self.micro_batch_size}` and `gradient_accumulation_steps: {self.accumulation}` on every rank (were "
            f"{before[0]} and {before[1]}); the effective batch stays {self.micro_batch_size * self.accumulation} per "
            "device"
        )
        free_memory()

    def halve_rollout_micro_batch(self) -> None:
        """Halve the micro-batches of sampling and scoring, on this rank as on every other.

        Raises:
            StageError: both sizes are 1 already.
        """
        tokens, phase = self.micro_batch_tokens, self._reporter.current_phase
        if tokens is not None and phase == "score":
            self.halve_micro_batch()
            return
        halved = tokens is not None and phase == "evaluate" and self._halve_tokens(tokens)  # it samples and scores
        if self.rollout_micro_batch_size == 1:  # scoring also runs the policy, in micro-batches of the update
            if not halved:
                self.halve_micro_batch()
            return
        before = self.rollout_micro_batch_size
        self.rollout_micro_batch_size = before // 2
        self._note(local_rollout_forward_batch_size=self.rollout_micro_batch_size)
        self._reporter.health(
            f"out of memory in phase {self._reporter.current_phase}: from now on "
            f"`local_rollout_forward_batch_size: {self.rollout_micro_batch_size}` on every rank (was {before})"
        )
        free_memory()

    def _halve_tokens(self, before: int) -> bool:
        """Halve the tokens per micro-batch, to no less than the longest response needs; return whether that helps."""
        self.micro_batch_tokens = smaller_token_limit(before, self._longest)
        if self.micro_batch_tokens == before:
            return False
        self._note(max_tokens_per_micro_batch=self.micro_batch_tokens)
        self._reporter.health(
            f"out of memory in phase {self._reporter.current_phase}: from now on `max_tokens_per_micro_batch: "
            f"{self.micro_batch_tokens}` on every rank (was {before}); the effective batch stays"
        )
        free_memory()
        return True


class RollbackPolicy:
    """Counts bad steps in a row, and rollbacks.

    Args:
        most_skipped: bad steps in a row before a rollback.
        most_rollbacks: rollbacks before the run ends.
        rollbacks: number so far.
    """

    def __init__(self, most_skipped: int, most_rollbacks: int, rollbacks: int = 0) -> None:
        self._most_skipped = most_skipped
        self._most_rollbacks = most_rollbacks
        self._in_a_row = 0
        self.rollbacks = rollbacks

    def after_step(self, step: int, reason: str | None) -> bool:
        """Return whether to roll back, after ``step`` with what was bad about it (None: nothing).

        Raises:
            StageError: there were as many rollbacks as are allowed.
        """
        self._in_a_row = self._in_a_row + 1 if reason else 0
        if self._in_a_row < self._most_skipped:
            return False
        if self.rollbacks == self._most_rollbacks:
            raise StageError(
                f"Step {step}: {reason}; {self._in_a_row} steps in a row could not be applied, after "
                f"{self.rollbacks} rollbacks with half the learning rate each. Lower `learning_rate`, use "
                "`bf16: true` or `dtype: bfloat16` instead of float16, or look at the data of these steps; the "
                "checkpoints are untouched."
            )
        self.rollbacks += 1
        self._in_a_row = 0
        return True

    @property
    def so_far(self) -> str:
        """``1 of 2``."""
        return f"{self.rollbacks} of {self._most_rollbacks}"
