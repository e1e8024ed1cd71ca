"""What the stages on top of transformers' Trainer share: arguments, checkpoints, requests, events."""

import json
import math
import pickle  # for its error alone
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from peft import PeftModel
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from ..contract.errors import StageError
from ..contract.recipe import RewardRecipe, SFTRecipe, TrainRecipe
from ..contract.recipe_common import steps_of
from . import averages, checkpoint, models, schedule, trial_save
from .answers import Answers
from .control import Change, Service, Stopped, serve
from .disk_wait import until_saved, write_result
from .guard import Guard, Guarded
from .save_timer import SaveTimer
from .saving import Saver, newest_sealed
from .session import SCRATCH, Session
from .trackers import survive_trackers

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainingArguments

_NOT_METRICS = frozenset({"epoch", "total_flos", "train_loss", "step"})
_TIMINGS = ("_runtime", "_per_second", "_preparation_time")


def training_arguments(recipe: SFTRecipe | RewardRecipe, output_dir: Path) -> dict[str, Any]:
    """The recipe in TrainingArguments' words.

    Checkpoints are written into ``output_dir`` and sealed from there; see :class:`RunCallback`.
    """
    evaluate = recipe.eval_steps > 0
    return {
        "output_dir": str(output_dir),
        "optim": recipe.optim,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.lr_scheduler_type,
        "lr_scheduler_kwargs": schedule.extra_arguments(recipe),
        "warmup_steps": recipe.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "adam_beta1": recipe.adam_beta1,
        "adam_beta2": recipe.adam_beta2,
        "adam_epsilon": recipe.adam_epsilon,
        "max_grad_norm": recipe.max_grad_norm,
        "per_device_train_batch_size": recipe.per_device_train_batch_size,
        "per_device_eval_batch_size": recipe.per_device_eval_batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        # bitsandbytes keeps int8 inputs on its autograd context, which only reentrant checkpointing frees
        "gradient_checkpointing_kwargs": {"use_reentrant": recipe.load_in_8bit}
        if recipe.gradient_checkpointing
        else None,
        "ddp_find_unused_parameters": False,
        "max_steps": recipe.max_steps,
        "num_train_epochs": recipe.num_train_epochs,
        "max_length": recipe.max_length,
        "bf16": recipe.bf16,
        "fp16": recipe.fp16,
        "use_cpu": recipe.use_cpu,
        "seed": recipe.seed,
        "logging_steps": recipe.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a NaN is news
        "eval_strategy": "steps" if evaluate else "no",
        "eval_steps": recipe.eval_steps if evaluate else None,
        "save_strategy": "steps" if recipe.save_steps else "no",
        "save_steps": recipe.save_steps or 500,
        "report_to": list(recipe.report_to) or "none",
        "disable_tqdm": True,
    }


class Interrupted(Exception):
    """A stop was asked for inside an evaluation; raised on every rank alike."""


class RunCallback(TrainerCallback):
    """Events, sealed checkpoints and requests for a Trainer.

    Args:
        session: its requests are polled after every optimizer step and every batch of an evaluation.
        keep: which checkpoints stay.
        answers: for who asks for samples; None where the stage answers nothing.
    """

    def __init__(self, session: Session, keep: checkpoint.Retention, answers: Answers | None = None) -> None:
        self.stopped = False
        self.save_failed = False
        """Of this rank's part of the checkpoint that is being written."""
        self.trainer: Any = None
        self.resumed_from: Path | None = None
        self._reporter = session.reporter
        self._requests = session.requests
        self._restart = session.restarts.now
        self._saver = Saver(session.reporter)
        self._service = Service(self._change, self._answer if answers else None)
        self._answers = answers
        self._keep = keep
        self._save_asked = False
        self._by_time = False  # the next save has no other reason
        self._phase_before: str | None = None  # of an evaluation that the schedule asked for
        self._counted: tuple[float, float] | None = None  # monotonic seconds, tokens, at the newest log

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """The recipe's intervals, the averages since the last log, and after a rollback the smaller learning rate, now
        that a checkpoint's state is loaded.

        The Trainer would go on with the checkpoint's `logging_steps`, `eval_steps` and `save_steps`
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
        """Serve what was asked for in the meantime."""
        self._reporter.progress(state.global_step, state.max_steps)
        wanted = serve(self._requests, self._reporter, state.global_step, self._service)
        self._save_asked = wanted.save
        self._by_time = wanted.due and not (control.should_save or wanted.save or wanted.stop)
        if wanted.save or wanted.due:
            control.should_save = True
        # where an evaluation is due now, its first batch breaks off and leaves: random numbers are then drawn as if
        # the run had gone on
        if wanted.stop and not control.should_evaluate:
            control.should_save = True
            self.stopped = control.should_training_stop = True

    def on_log(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Metrics under the names that TRL gives them."""
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
        """An evaluation has begun: it may take longer than many steps, and says so.

        Raises:
            Interrupted: a stop is wanted.
        """
        if self._phase_before is None:
            self._phase_before = self._reporter.current_phase
            if self._phase_before != "evaluate":
                self._reporter.phase("evaluate")
        self.look()

    def look(self) -> None:
        """A point inside an evaluation at which every rank learns of a stop.

        Raises:
            Interrupted: it is wanted.
        """
        if self._requests.agree().stop:
            raise Interrupted

    def on_evaluate(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Back to what was done before."""
        if self._phase_before not in (None, "evaluate"):
            self._reporter.phase(str(self._phase_before))
        self._phase_before = None

    def _throughput(self, metrics: dict[str, Any]) -> dict[str, float]:
        """``tokens_per_second`` since the log before; an evaluation in between is not counted."""
        now, before = time.monotonic(), self._counted
        tokens = metrics.get("num_tokens")
        if tokens is None:  # an evaluation: training goes on from here
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
        """The Trainer is about to write."""
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
        """Every rank calls it. Where the disk is full it waits and has the Trainer write again.

        Raises:
            StageError: there was no room also in the reserve, and the run has to stop.
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
        """Whether what every rank has written is a checkpoint now; the same on every rank."""
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

    def _answer(self, step: int) -> None:
        assert self._answers is not None
        self._reporter.phase("evaluate")
        if self._reporter.is_main:
            self._reporter.samples(step, self._answers.rows(self.trainer.model))
        PartialState().wait_for_everyone()


def fit(trainer: "Guarded", callback: RunCallback, recipe: SFTRecipe | RewardRecipe, session: Session) -> None:
    """Train from the newest verified checkpoint, or from the start, to the end.

    Raises:
        Stopped: asked to stop; a checkpoint was sealed, or nothing was trained yet.
        Interrupted: asked to stop inside an evaluation; see :func:`saving_first`.
    """
    reporter = session.reporter
    trainer.guard = Guard(recipe, reporter, session.restarts)
    trainer.run_callback = callback
    callback.trainer = trainer
    survive_trackers(trainer, reporter)
    if isinstance(_model(trainer), PeftModel):
        models.trainables_to_fp32(_model(trainer))
    session.requests.signals.loaded()
    callback.resumed_from = resume_from = checkpoint.to_resume(reporter, recipe)
    if session.restarts.now.message:
        reporter.health(session.restarts.now.message)
    reporter.phase("train")
    session.requests.timer = SaveTimer(recipe.save_minutes, reporter)
    if resume_from and _take_back(trainer, resume_from, recipe.eval_steps):
        return
    try:
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    except pickle.UnpicklingError as error:  # transformers reads its own files with `weights_only`
        raise StageError(
            f"{resume_from} was not resumed from: one of its files holds a pickle that is more than tensors and "
            "numbers, and nothing of it was executed. Remove this checkpoint to go on from the one before."
        ) from error
    if callback.stopped:
        raise Stopped


def rehearse_save(trainer: "Trainer", tokenizer: Any, recipe: TrainRecipe, session: Session) -> None:
    """Save once before the first step; see :mod:`.trial_save`.

    Raises:
        StageError: what would be trained cannot be saved.
    """
    trial_save.rehearse_save(_model(trainer), tokenizer, recipe.model_name_or_path, session)


@contextmanager
def saving_first(trainer: "Guarded", callback: RunCallback) -> Iterator[None]:
    """Inside, a stop in the middle of an evaluation saves the state at the last step before it ends the stage.

    Raises:
        Stopped: asked to stop; a checkpoint is sealed.
    """
    try:
        yield
    except Interrupted:
        callback.save_now(trainer.state.global_step)
        raise Stopped from None


def _take_back(trainer: Any, path: Path, eval_steps: float) -> bool:
    """What the Trainer does not take back from a checkpoint by itself; whether its last step was the run's last."""
    state = TrainerState.load_from_json(str(path / TRAINER_STATE_NAME))
    asked = trainer.args.max_steps  # of the recipe, which may have changed
    if state.global_step >= (asked if asked > 0 else state.max_steps):  # the Trainer would make another one
        trainer._load_from_checkpoint(str(path))
        trainer.state = state
        return True
    eval_steps = steps_of(eval_steps, state.max_steps)
    evaluated = any("eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history)
    if eval_steps and state.global_step and state.global_step % eval_steps == 0 and not evaluated:
        trainer.args.eval_on_start = True  # the evaluation that a stop broke off
    _restore_token_count(trainer, path)
    return False


def _restore_token_count(trainer: Any, path: Path) -> None:
    """TRL counts tokens on the trainer, outside the state it saves, and would begin again at 0."""
    history = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    counts = [entry["num_tokens"] for entry in history if "num_tokens" in entry]
    trainer._total_train_tokens = int(counts[-1]) if counts else 0


def save(trainer: "Trainer", tokenizer: Any, recipe: TrainRecipe, session: Session) -> None:
    """Write what was trained: ``adapter/``, or ``merged/`` after full training.

    Raises:
        Stopped, StageError: the disk is full, and waiting for room is over; see :func:`.disk_wait.write_result`.
    """
    session.reporter.phase("save")

    def write() -> None:
        if recipe.use_peft:
            models.save_adapter(_model(trainer), tokenizer, session.run.adapter, recipe)
        else:
            models.save_model(_model(trainer), tokenizer, session.run.merged)

    write_result(session.requests, session.reporter, trainer.state.global_step, write)
    session.state.wait_for_everyone()


def _model(trainer: "Trainer") -> Any:
    assert trainer.model is not None
    return trainer.model


def final_evaluation(trainer: "Trainer") -> dict[str, Any]:
    """The evaluation after the last step, made now unless the schedule has just made it."""
    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry and entry["step"] == trainer.state.global_step:
            return entry
    return trainer.evaluate()


def logged(trainer: "Trainer", name: str) -> list[float]:
    """Every value of one metric that the Trainer logged, over all attempts."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def scratch_dir(session: Session) -> Path:
    """Where the Trainer writes before anything is sealed; emptied at the start of an attempt."""
    path = session.run.path / SCRATCH
    if session.is_main:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
    session.state.wait_for_everyone()
    return path
