"""Guards of TRL's trainers against gradients that are not finite and a full disk.

A step whose gradient norm is NaN or infinite is skipped: its gradients are dropped on every rank (after DDP's
all-reduce all hold the same), the optimizer has nothing to do, and the data continues after its batches. After
``max_skipped_steps`` of them in a row the weights are in doubt: every rank begins again from the newest verified
checkpoint, or the start, with half the learning rate (:mod:`.restart`). With ``fp16`` the loss scaler has its own way
of skipping, and is left alone. A finite spike is clipped by ``max_grad_norm``, and nothing else.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contract.recipe import SupervisedRecipe
from . import averages, checkpoint, faults, schedule
from .reporting import Reporter
from .restart import Restarts
from .run_callback import RunCallback

if TYPE_CHECKING:
    from transformers import Trainer

    _Base = Trainer
else:
    _Base = object


class Guard:
    """Checks the steps of one attempt.

    Args:
        recipe: how many bad steps, how many rollbacks.
        reporter: where they are recorded.
        restarts: begins again.
    """

    def __init__(self, recipe: SupervisedRecipe, reporter: Reporter, restarts: Restarts) -> None:
        self._reporter = reporter
        self._restarts = restarts
        self._off = recipe.fp16
        self._rollback_policy = faults.RollbackPolicy(
            recipe.max_skipped_steps, recipe.max_rollbacks, restarts.now.rollbacks
        )

    def check(self, trainer: Any, norm: float) -> None:
        """Drop the gradients of a bad step; begin again after too many of them. On every rank alike.

        Raises:
            StageError: there were as many rollbacks as are allowed.
        """
        if self._off:
            return
        step = trainer.state.global_step + 1
        bad = None if math.isfinite(norm) else f"`grad_norm` is {norm}"
        if bad:
            for parameter in trainer.model.parameters():
                parameter.grad = None
            trainer._tr_loss.nan_to_num_(0.0, 0.0, 0.0)  # else every later average would be NaN as well
            self._reporter.metrics(step, {"grad_norm": norm})
            self._reporter.health(f"step {step} skipped: {bad}")
        if self._rollback_policy.after_step(step, bad):
            self._roll_back(trainer, step)

    def _roll_back(self, trainer: Any, step: int) -> None:
        saved, _ = checkpoint.newest(self._reporter.run.checkpoints)
        start = checkpoint.step_of(saved) if saved else 0
        rate = schedule.peak(trainer.lr_scheduler) / 2
        where = saved.name if saved else "the start"
        self._restarts.again(
            learning_rate=rate,
            at_step=start,
            rollbacks=self._rollback_policy.rollbacks,
            message=f"rolled back from step {step} to {where}, rollback {self._rollback_policy.so_far}: continuing "
            f"with learning_rate {rate:g} (halved)",
        )


class Guarded(_Base):
    """Mix-in before a TRL trainer: skips bad steps, and survives a save that finds the disk full."""

    guard: Guard
    run_callback: RunCallback
    _saves = False

    def _get_grad_norm(self, model: Any, grad_norm: float | None = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None:
            self.guard.check(self, float(norm))
        return norm

    def store_flos(self) -> None:
        """Store the operation count; inside of a save it has been made already (a collective)."""
        if not self._saves:
            super().store_flos()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.run_callback.begin_save()
        # the only collective of a save comes first: a rank that fails before it would leave the others waiting in it
        self.store_flos()
        self._saves = True
        try:
            super()._save_checkpoint(model, trial)
            averages.keep(self, Path(self.args.output_dir or "") / f"checkpoint-{self.state.global_step}")
        except Exception as error:  # libraries report a full disk in classes of their own
            if not faults.is_disk_full(error):
                raise
            self.run_callback.save_failed = True
        finally:
            self._saves = False
