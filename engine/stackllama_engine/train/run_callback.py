"""Events, sealed checkpoints and requests of the stages on top of transformers' Trainer."""

import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from transformers import TrainerCallback

from ..contract.errors import StageError
from ..contract.requests import Change
from . import averages, checkpoint, schedule
from .disk_wait import until_saved
from .eval_sampler import EvalSampler
from .saving import Saver, newest_sealed
from .serving import Service, serve
from .session import Session

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

_NOT_METRICS = frozenset({"epoch", "total_flos", "train_loss", "step"})
_TIMINGS = ("_runtime", "_per_second", "_preparation_time")


class Interrupted(Exception):
    """A stop was requested inside an evaluation; raised on every rank alike."""


class RunCallback(TrainerCallback):
    """Events, sealed checkpoints and requests for a Trainer.

    Args:
        session: its requests are polled after every optimizer step and every batch of an evaluation.
        keep: which checkpoints stay.
        eval_sampler: generates samples on request; None where the stage generates no text.
    """

    def __init__(self, session: Session, keep: checkpoint.Retention, eval_sampler: EvalSampler | None = None) -> None:
        self.stopped = False
        self.save_failed = False
        """Whether this rank's part of the current checkpoint could not be written."""
        self.trainer: Any = None
        self.resumed_from: Path | None = None
        self._reporter = session.reporter
        self._requests = session.requests
        self._restart = session.restarts.now
        self._saver = Saver(session.reporter)
        self._service = Service(self._change, self._sample_on_request if eval_sampler else None)
        self._eval_sampler = eval_sampler
        self._keep = keep
        self._save_asked = False
        self._by_time = False  # the next save has no other reason
        self._phase_before: str | None = None  # of an evaluation that the schedule asked for
        self._counted: tuple[float, float] | None = None  # monotonic seconds, tokens, at the newest log

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Restore intervals, averages and, after a rollback, the smaller learning rate; the state is loaded by now.

        The Trainer would continue with the checkpoint's `logging_steps`, `eval_steps` and `save_steps`
        (transformers#36303).
        """
        state.compute_steps(args, state.max_steps)
        if self.resumed_from is not None:
            averages.restore(self.trainer, self.resumed_from)
        if self._restart.learning_rate is not None and state.global_step == self._restart.at_step:
            schedule.set_peak(self.trainer.optimizer, self.trainer.lr_scheduler, self._restart.learning_rate)

    def on_step_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Serve the requests that came in the meantime."""
        self._reporter.progress(state.global_step, state.max_steps)
        wanted = serve(self._requests, self._reporter, state.global_step, self._service)
        self._save_asked = wanted.save
        self._by_time = wanted.due and not (control.should_save or wanted.save or wanted.stop)
        if wanted.save or wanted.due:
            control.should_save = True
        # where an evaluation is due now, it ends at its first batch: random numbers are then drawn as if the run had
        # continued
        if wanted.stop and not control.should_evaluate:
            control.should_save = True
            self.stopped = control.should_training_stop = True

    def on_log(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Report metrics under the names that TRL gives them."""
        logs: dict[str, Any] = kwargs["logs"]
        metrics = {
            name: value
            for name, value in logs.items()
            if isinstance(value, int | float) and name not in _NOT_METRICS and not name.endswith(_TIMINGS)
        }
        if not math.isfinite(metrics.get("loss", 0.0)):  # with `fp16`; else such a step is skipped, see `guard`
            self._reporter.metrics(state.global_step, metrics)
            raise StageError(
                f"`loss` became {metrics['loss']} at step {state.global_step}. Lower `learning_rate`, or use "
                "`bf16: true` instead of `fp16`; the checkpoints before this step are untouched."
            )
        metrics |= self._throughput(metrics)
        if "train_runtime" not in logs:
            self._reporter.metrics(state.global_step, metrics)
            self._reporter.memory()

    def on_prediction_step(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Report that an evaluation runs: it may take longer than many steps.

        Raises:
            Interrupted: a stop is wanted.
        """
        if self._phase_before is None:
            self._phase_before = self._reporter.current_phase
            if self._phase_before != "evaluate":
                self._reporter.phase("evaluate")
        self.check_stop()

    def check_stop(self) -> None:
        """End an evaluation early on every rank when a stop is wanted (a collective).

        Raises:
            Interrupted: a stop is wanted.
        """
        if self._requests.agree().stop:
            raise Interrupted

    def on_evaluate(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Return to the phase before the evaluation."""
        if self._phase_before not in (None, "evaluate"):
            self._reporter.phase(str(self._phase_before))
        self._phase_before = None

    def _throughput(self, metrics: dict[str, Any]) -> dict[str, float]:
        """Return ``tokens_per_second`` since the log before; an evaluation in between is not counted."""
        now, before = time.monotonic(), self._counted
        tokens = metrics.get("num_tokens")
        if tokens is None:  # an evaluation: training continues from here
            self._counted = (now, before[1]) if before else None
            return {}
        self._counted = (now, tokens)
        return {"tokens_per_second": (tokens - before[1]) / (now - before[0])} if before and now > before[0] else {}

    def on_save(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Seal what the Trainer has just written; called after every rank has saved its part."""
        self._seal(Path(args.output_dir or ""), state.global_step)
        if self.stopped:
            control.should_training_stop = True
        while self._requests.paused and not self.stopped:
            wanted = serve(self._requests, self._reporter, state.global_step, self._service)
            if wanted.stop:
                control.should_training_stop = self.stopped = True
            if wanted.stop or wanted.save or wanted.due:
                self._save_asked = wanted.save
                self._by_time = wanted.due and not (wanted.stop or wanted.save)
                self._write(state.global_step)

    def begin_save(self) -> None:
        """Start the save timer, as the Trainer is about to write."""
        if self._requests.timer is not None:
            self._requests.timer.begin()

    def save_now(self, step: int) -> None:
        """Save outside of the Trainer's schedule, unless this step was saved already."""
        newest = newest_sealed(self._reporter.run.checkpoints)
        PartialState().wait_for_everyone()  # all have looked
        if newest is None or checkpoint.step_of(newest) != step or checkpoint.problem(newest):
            self.stopped, self._by_time = True, False
            self._write(step)

    def _write(self, step: int) -> None:
        self.trainer._save_checkpoint(self.trainer.model, None)
        self._seal(Path(self.trainer.args.output_dir), step)

    def _seal(self, scratch: Path, step: int) -> None:
        """Seal a checkpoint; on a full disk, wait and have the Trainer write again (a collective).

        Raises:
            StageError: there was no room even in the reserve, and the run has to stop.
        """
        written = iter([True])  # the first time, the Trainer has just done so

        def save() -> bool:
            if not next(written, False):
                self.trainer._save_checkpoint(self.trainer.model, None)
            return self._publish(scratch / f"checkpoint-{step}", step)

        saved = until_saved(self._requests, self._reporter, step, save, stop=self.stopped)
        self.stopped = saved.stop
        for what, asked in (("save", self._save_asked), ("stop", self.stopped)):
            if asked:
                self._requests.served(what, step)
        self._save_asked = self._by_time = False
        PartialState().wait_for_everyone()
        checkpoints = self._reporter.run.checkpoints
        if self._reporter.is_main and self._requests.timer is not None:
            size = checkpoint.size(checkpoints, step) if saved.saved else None
            self._requests.timer.end(step, size, last=self.stopped)
        if not saved.saved:
            raise self._saver.lost(step, checkpoints)

    def _publish(self, written: Path, step: int) -> bool:
        """Publish what every rank has written; return whether it is a checkpoint now (a collective)."""
        failed = self._requests.agree(self.save_failed).failed
        self.save_failed = False
        if self._reporter.is_main:
            if failed:
                self._saver.failed(step)
            else:
                failed = not self._saver.save(
                    step,
                    lambda: checkpoint.publish(self._reporter, written, step, self._keep, by_time=self._by_time),
                )
            if failed:
                shutil.rmtree(written, ignore_errors=True)
        return not self._requests.agree(failed).failed

    def _change(self, change: Change) -> str:
        now = schedule.set_peak(self.trainer.optimizer, self.trainer.lr_scheduler, change.value)
        return f"`learning_rate` is {change.value:g} now; the schedule makes it {now:g} for the next step"

    def _sample_on_request(self, step: int) -> None:
        assert self._eval_sampler is not None
        self._reporter.phase("evaluate")
        if self._reporter.is_main:
            self._reporter.samples(step, self._eval_sampler.rows(self.trainer.model))
        PartialState().wait_for_everyone()
