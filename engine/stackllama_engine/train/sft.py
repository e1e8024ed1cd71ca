"""Supervised fine-tuning: TRL's SFTTrainer on the better answer of each pair.

Departs from the published script in four places: prompt and answer are tokenised apart (see :mod:`.encoding`), packed
answers do not see each other unless ``packing_strategy`` is ``wrapped`` (see :mod:`.sft_packing`), what trains stays
float32 on a quantised base (see :func:`.models.trainables_to_fp32`), and the evaluation weighs every token alike
(:mod:`.eval_metrics`).
"""

from typing import Any

from datasets import Dataset, IterableDataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ..contract.attention import is_flash
from ..contract.recipe import SFTRecipe
from ..data.splits import question_hash
from . import checkpoint, hf_trainer, limits, models, right_padding, varlen
from .encoding import evaluation_rows, report_columns, report_skipped, training_rows
from .eval_metrics import TokenWeighted
from .eval_sampler import EvalSampler
from .guard import Guarded
from .lengths import PROMPT, LengthLimit, cuts_training_rows
from .overlap import COLUMN, Overlap
from .prompt_formats import make_encoder
from .run_callback import RunCallback
from .session import Session
from .sft_packing import Collator, check_apart, keeps_apart, leave_masks_out
from .stage_rows import supervised, trains_on_responses_alone
from .tokenizing import BatchTokenizing

_COLUMNS = ("question", "response_j")


class GuardedSFTTrainer(Guarded, TokenWeighted, SFTTrainer):
    """TRL's, which survives a NaN and a full disk, evaluates token by token, and counts the tokens of packed rows."""

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        """TRL's loss; of packed rows without a mask it would count one row's tokens for all."""
        in_rows, before = inputs.pop("num_tokens", None), self._total_train_tokens
        loss = super().compute_loss(model, inputs, *arguments, **named)
        if in_rows is not None:
            tokens: Any = self.accelerator.gather(in_rows.sum())
            self._total_train_tokens = before + int(tokens.sum())
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss


def run(recipe: SFTRecipe, session: Session) -> dict[str, Any]:
    """Run the stage to its end; returns the facts for ``result.json``.

    Raises:
        StackllamaError: model or data cannot be used.
        Stopped: asked to stop, after saving.
    """
    reporter = session.reporter
    reporter.phase("load")
    tokenizer = models.load_tokenizer(recipe.model_name_or_path, recipe.model_revision)

    encoder = make_encoder(recipe, session, tokenizer)
    responses_alone = trains_on_responses_alone(recipe, encoder)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        prompt, response = supervised(encoder, row)
        labels = {"labels": [-100] * len(prompt) + response} if responses_alone else {}  # -100: no loss
        lengths = {PROMPT: len(prompt), COLUMN: question_hash(row["question"])}
        return {"input_ids": prompt + response, **lengths, **labels}

    together = BatchTokenizing(encoder, session.run, recipe.stage, responses_alone)
    report_columns(recipe, _COLUMNS, reporter)
    training = LengthLimit(recipe.max_length, "training", cuts=cuts_training_rows(recipe))
    held_out = LengthLimit(recipe.max_length, "evaluation", cuts=True)  # evaluation is never packed
    reporter.activity("tokenizing")
    with session.main_first():
        eval_rows = held_out(evaluation_rows(recipe, session.run, _COLUMNS, encode, together))
        assert isinstance(eval_rows, Dataset)
        overlap = Overlap(eval_rows)
        train_rows = overlap.watch(training(training_rows(recipe, session.run, _COLUMNS, encode, together)))

    def report_rows() -> None:
        report_skipped(reporter)
        for notice in (training.notice(), held_out.notice(), overlap.notice(recipe)):
            if notice:
                reporter.health(notice)

    streamed = isinstance(train_rows, IterableDataset)
    if not streamed:
        report_rows()
    base = models.load_causal_lm(recipe, session.device)
    limits.check_tokens(base, tokenizer, recipe.model_name_or_path)
    limits.check_length(
        base, recipe.model_name_or_path, recipe.max_length, f"`max_length={recipe.max_length}`", reporter
    )
    model = models.add_lora(base, recipe, "CAUSAL_LM")
    eval_sampler = EvalSampler(recipe, encoder, session.requests)
    callback = RunCallback(session, checkpoint.Retention.of(recipe), eval_sampler)
    trainer = GuardedSFTTrainer(
        model=model,
        args=SFTConfig(
            **hf_trainer.training_arguments(recipe, hf_trainer.scratch_dir(session)),
            packing=recipe.packing,
            packing_strategy=recipe.packing_strategy,
            eval_packing=False,
            shuffle_dataset=True,  # before packing: pairs of one question lie side by side
        ),
        train_dataset=train_rows,
        eval_dataset=eval_rows.remove_columns(COLUMN),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    hf_trainer.try_save(trainer, tokenizer, recipe, session)
    bf16, autocast = recipe.bf16 or recipe.fp16, trainer.compute_loss_context_manager
    masks = not right_padding.needs_none(trainer.model, session.device, autocast(), bf16=bf16)
    collator = Collator(models.pad_id(tokenizer), flat=is_flash(recipe.attn_implementation), masks=masks)
    trainer.data_collator = collator  # TRL refuses another one in its constructor when it packs
    if keeps_apart(recipe):
        if varlen.leaves_masks_out(trainer.model, session.device, recipe.max_length, bf16=bf16):
            leave_masks_out(trainer.model, collator, autocast())
        check_apart(recipe, trainer.model, collator, autocast())
    with hf_trainer.saving_first(trainer, callback):
        hf_trainer.fit(trainer, callback, recipe, session)
        reporter.phase("evaluate")
        evaluation = hf_trainer.final_evaluation(trainer)
    hf_trainer.save(trainer, encoder, recipe, session)
    if streamed:  # counted as they came
        report_rows()
    losses = hf_trainer.logged(trainer, "loss")
    return {
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "eval_loss": evaluation["eval_loss"],
        "steps": trainer.state.global_step,
        "tokens": int(hf_trainer.logged(trainer, "num_tokens")[-1]),
        "cut_too_long": training.cut + held_out.cut,
        "dropped_too_long": training.dropped + held_out.dropped,
    }
