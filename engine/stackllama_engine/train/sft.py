"""Supervised fine-tuning: TRL's SFTTrainer on the better answer of each pair.

Departs from the published script in two places: prompt and answer are tokenised apart (see :mod:`.rows`), and what
trains stays float32 on a quantised base (see :func:`.models.trainables_to_fp32`).
"""

from typing import Any

from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ..contract.recipe import SFTRecipe
from . import checkpoint, hf_trainer, limits, models
from .answers import Answers
from .guard import Guarded
from .rows import encode_text, evaluation_rows, training_rows
from .session import Session

_COLUMNS = ("question", "response_j")


class GuardedSFTTrainer(Guarded, SFTTrainer):
    """TRL's, which survives a NaN and a full disk."""


def run(recipe: SFTRecipe, session: Session) -> dict[str, Any]:
    """Run the stage to its end; returns the facts for ``result.json``.

    Raises:
        StackllamaError: model or data cannot be used.
        Stopped: asked to stop, after saving.
    """
    reporter = session.reporter
    reporter.phase("load")
    tokenizer = models.load_tokenizer(recipe.model_name_or_path, recipe.model_revision)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": encode_text(tokenizer, row["question"], row["response_j"])}

    with session.main_first():
        train_rows = training_rows(recipe, session.run, _COLUMNS, encode)
        eval_rows = evaluation_rows(recipe, session.run, _COLUMNS, encode)
    base = models.load_causal_lm(recipe, session.device)
    limits.check_tokens(base, tokenizer, recipe.model_name_or_path)
    limits.check_length(
        base, recipe.model_name_or_path, recipe.max_length, f"`max_length={recipe.max_length}`", reporter
    )
    model = models.add_lora(base, recipe, "CAUSAL_LM")
    answers = Answers(recipe, tokenizer, session.requests)
    callback = hf_trainer.RunCallback(session, checkpoint.Retention.of(recipe), answers)
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
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        callbacks=[callback],
    )
    hf_trainer.rehearse_save(trainer, tokenizer, recipe, session)
    with hf_trainer.saving_first(trainer, callback):
        hf_trainer.fit(trainer, callback, recipe, session)
        reporter.phase("evaluate")
        evaluation = hf_trainer.final_evaluation(trainer)
    hf_trainer.save(trainer, tokenizer, recipe, session)
    losses = hf_trainer.logged(trainer, "loss")
    return {
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "eval_loss": evaluation["eval_loss"],
        "steps": trainer.state.global_step,
        "tokens": int(hf_trainer.logged(trainer, "num_tokens")[-1]),
    }
