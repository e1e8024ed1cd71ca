"""What the stages on top of transformers' Trainer share: arguments, checkpoints, requests, events."""

import json
import math
import pickle  # for its error alone
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from peft import PeftModel
from transformers import TrainerCallback

from ..contract.errors import StageError
from ..contract.recipe import RewardRecipe, SFTRecipe, TrainRecipe
from . import checkpoint, models
from .report import Reporter
from .requests import Requests, Stopped
from .session import SCRATCH, Session

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

_NOT_METRICS = frozenset({"epoch", "total_flos", "train_loss", "step"})
_TIMINGS = ("_runtime", "_per_second")


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


class RunCallback(TrainerCallback):
    """Events, sealed checkpoints and requests for a Trainer.

    Args:
        reporter: where events go.
        requests: polled after every optimizer step.
        keep: which checkpoints stay.
    """

    def __init__(self, reporter: Reporter, requests: Requests, keep: checkpoint.Retention) -> None:
        self.stopped = False
        self._reporter = reporter
        self._requests = requests
        self._keep = keep
        self._phase_before: str | None = None  # of an evaluation that the schedule asked for
        self._counted: tuple[float, float] | None = None  # monotonic seconds, tokens, at the newest log

    def on_step_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Serve what was asked for in the meantime."""
        self._reporter.progress(state.global_step, state.max_steps)
        wanted = self._requests.poll()
        if wanted:
            control.should_save = True
        if "stop" in wanted and state.global_step < state.max_steps:
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
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics.get(name, 0.0)):
                self._reporter.metrics(state.global_step, metrics)
                raise StageError(
                    f"`{name}` became {metrics[name]} at step {state.global_step}. Lower `learning_rate`, or use "
                    "`bf16: true` instead of `fp16`; the checkpoints before this step are untouched."
                )
        metrics |= self._throughput(metrics)
        if "train_runtime" not in logs:
            self._reporter.metrics(state.global_step, metrics)
            self._reporter.memory()

    def on_prediction_step(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """An evaluation has begun: it may take longer than many steps, and says so."""
        if self._phase_before is None:
            self._phase_before = self._reporter.current_phase
            if self._phase_before != "evaluate":
                self._reporter.phase("evaluate")

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
        process = PartialState()
        process.wait_for_everyone()
        if process.is_main_process:
            written = Path(args.output_dir or "") / f"checkpoint-{state.global_step}"
            checkpoint.publish(self._reporter, written, state.global_step, self._keep)
            self._requests.saved()
        process.wait_for_everyone()


def fit(trainer: "Trainer", callback: RunCallback, reporter: Reporter) -> None:
    """Train from the newest verified checkpoint, or from the start, to the end.

    Raises:
        Stopped: asked to stop; a checkpoint was sealed.
    """
    if isinstance(_model(trainer), PeftModel):
        models.trainables_to_fp32(_model(trainer))
    resume_from = checkpoint.to_resume(reporter)
    if resume_from:
        _restore_token_count(trainer, resume_from)
    reporter.phase("train")
    try:
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    except pickle.UnpicklingError as error:  # transformers reads its own files with `weights_only`
        raise StageError(
            f"{resume_from} was not resumed from: one of its files holds a pickle that is more than tensors and "
            "numbers, and nothing of it was executed. Remove this checkpoint to go on from the one before."
        ) from error
    if callback.stopped:
        raise Stopped


def _restore_token_count(trainer: Any, path: Path) -> None:
    """TRL counts tokens on the trainer, outside the state it saves, and would begin again at 0."""
    history = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    counts = [entry["num_tokens"] for entry in history if "num_tokens" in entry]
    trainer._total_train_tokens = int(counts[-1]) if counts else 0


def save(trainer: "Trainer", tokenizer: Any, recipe: TrainRecipe, session: Session) -> None:
    """Write what was trained: ``adapter/``, or ``merged/`` after full training."""
    session.reporter.phase("save")
    if session.is_main:
        if recipe.use_peft:
            models.save_adapter(_model(trainer), tokenizer, session.run.adapter, recipe)
        else:
            models.save_model(_model(trainer), tokenizer, session.run.merged)
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
