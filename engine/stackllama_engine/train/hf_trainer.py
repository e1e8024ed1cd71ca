"""Shared parts of the stages on top of transformers' Trainer: arguments, training from a checkpoint, results."""

import json
import pickle  # for its error alone
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from ..contract.errors import StageError
from ..contract.recipe import SupervisedRecipe, TrainRecipe
from ..contract.recipe_common import steps_of
from ..contract.stages import Stage
from . import checkpoint, models, schedule, trial_save
from .disk_wait import write_result
from .encoding import Encoder
from .guard import Guard, Guarded
from .run_callback import Interrupted, RunCallback
from .save_timer import SaveTimer
from .session import SCRATCH, Session
from .signals import Stopped
from .trackers import survive_trackers

if TYPE_CHECKING:
    from transformers import Trainer


def training_arguments(recipe: SupervisedRecipe, output_dir: Path) -> dict[str, Any]:
    """Translate a recipe into TrainingArguments' keywords.

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
        "per_device_train_batch_size": recipe.micro_batch_size,
        "per_device_eval_batch_size": recipe.per_device_eval_batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "gradient_checkpointing": recipe.checkpointing,
        # bitsandbytes keeps int8 inputs on its autograd context, which only reentrant checkpointing frees
        "gradient_checkpointing_kwargs": {"use_reentrant": recipe.load_in_8bit} if recipe.checkpointing else None,
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
        "logging_nan_inf_filter": False,  # a NaN must be seen
        "eval_strategy": "steps" if evaluate else "no",
        "eval_steps": recipe.eval_steps if evaluate else None,
        "save_strategy": "steps" if recipe.save_steps else "no",
        "save_steps": recipe.save_steps or 500,
        "report_to": list(recipe.report_to) or "none",
        "disable_tqdm": True,
    }


def fit(trainer: "Guarded", callback: RunCallback, recipe: SupervisedRecipe, session: Session) -> None:
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
    session.loaded()
    callback.resumed_from = resume_from = checkpoint.to_resume(reporter, recipe)
    if session.restarts.now.message:
        reporter.health(session.restarts.now.message)
    reporter.phase("train")
    session.requests.timer = SaveTimer(recipe.save_minutes, reporter)
    if resume_from and _restore(trainer, resume_from, recipe.eval_steps):
        return
    try:
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    except pickle.UnpicklingError as error:  # transformers reads its own files with `weights_only`
        raise StageError(
            f"Cannot resume from {resume_from}: one of its files holds a pickle with more than tensors and numbers; "
            "nothing of it was executed. Remove this checkpoint to resume from the previous one."
        ) from error
    if callback.stopped:
        raise Stopped


def try_save(trainer: "Trainer", tokenizer: Any, recipe: TrainRecipe, session: Session) -> None:
    """Save once before the first step; see :mod:`.trial_save`.

    Raises:
        StageError: what would be trained cannot be saved.
    """
    trial_save.try_save(_model(trainer), tokenizer, recipe.model_name_or_path, session)


@contextmanager
def saving_first(trainer: "Guarded", callback: RunCallback) -> Iterator[None]:
    """Save the state at the last step before a stop in the middle of an evaluation ends the stage.

    Raises:
        Stopped: asked to stop; a checkpoint is sealed.
    """
    try:
        yield
    except Interrupted:
        callback.save_now(trainer.state.global_step)
        raise Stopped from None


def _restore(trainer: Any, path: Path, eval_steps: float) -> bool:
    """Restore what the Trainer does not restore from a checkpoint; return whether its step was the run's last."""
    state = TrainerState.load_from_json(str(path / TRAINER_STATE_NAME))
    max_steps = trainer.args.max_steps  # of the recipe, which may have changed
    if state.global_step >= (max_steps if max_steps > 0 else state.max_steps):  # the Trainer would make another one
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
    """Restore TRL's count of tokens, which is outside the state it saves and would begin again at 0."""
    history = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    counts = [entry["num_tokens"] for entry in history if "num_tokens" in entry]
    trainer._total_train_tokens = int(counts[-1]) if counts else 0


def save(trainer: "Trainer", encoder: Encoder, recipe: TrainRecipe, session: Session) -> None:
    """Write what was trained: ``adapter/``, or ``merged/`` after full training.

    Raises:
        Stopped, StageError: the disk is full, and waiting for room is over; see :func:`.disk_wait.write_result`.
    """
    session.reporter.phase("save")

    def write() -> None:
        stops = encoder.stop_ids if recipe.stage is not Stage.REWARD else ()  # a reward model writes nothing
        model, tokenizer, run = _model(trainer), encoder.tokenizer, session.run
        if recipe.use_peft:
            models.save_adapter(model, tokenizer, run.adapter, recipe, encoder.format, stops=stops)
        else:
            models.save_model(model, tokenizer, run.merged, encoder.format, stops)

    write_result(session.requests, session.reporter, trainer.state.global_step, write)
    session.state.wait_for_everyone()


def _model(trainer: "Trainer") -> Any:
    assert trainer.model is not None
    return trainer.model


def final_evaluation(trainer: "Trainer") -> dict[str, Any]:
    """Return the evaluation after the last step, made now unless the schedule has just made it."""
    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry and entry["step"] == trainer.state.global_step:
            return entry
    return trainer.evaluate()


def logged(trainer: "Trainer", name: str) -> list[float]:
    """Return every value of one metric that the Trainer logged, over all attempts."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def scratch_dir(session: Session) -> Path:
    """Return the directory that the Trainer writes into before anything is sealed; emptied when an attempt starts."""
    path = session.run.path / SCRATCH
    if session.is_main:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
    session.state.wait_for_everyone()
    return path
