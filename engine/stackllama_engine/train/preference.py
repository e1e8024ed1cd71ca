"""Direct preference optimisation: TRL's DPOTrainer on pairs, without a reward model and without sampling.

The reference is the base with the adapter switched off. Departs from TRL's script: prompt and response are tokenised
apart (see :mod:`.encoding`), a pair that is too long is dropped instead of cut, the adapter trains in float32 on a
quantised base too (see :func:`.models.trainables_to_fp32`), and the evaluation is made pair by pair over the whole
held-out set, ties apart (:mod:`.eval_metrics`).
"""

from typing import Any

from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from ..contract.recipe import PreferenceRecipe
from ..data.splits import question_hash
from . import checkpoint, hf_trainer, limits, models, right_padding
from .eval_metrics import PreferenceWeighted
from .eval_sampler import EvalSampler
from .guard import Guarded
from .overlap import COLUMN
from .pair_rows import PairRows
from .prompt_formats import make_encoder
from .run_callback import RunCallback
from .session import Session
from .stage_rows import preference
from .tokenizing import BatchTokenizing

_RESULTS = ("rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected", "pairs", "ties")
_REFERENCE = "ref"
"""TRL's copy of an adapter that it is given."""


class GuardedDPOTrainer(Guarded, PreferenceWeighted, DPOTrainer):
    """TRL's, which survives a NaN and a full disk, evaluates pair by pair, and takes rows that are tokens already."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        # the adapter is new, so that the base itself is the reference: no second adapter in memory and in each pass
        self.model.delete_adapter(_REFERENCE)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset


def run(recipe: PreferenceRecipe, session: Session) -> dict[str, Any]:
    """Run the stage to its end; returns the facts for ``result.json``.

    Raises:
        StackllamaError: model or data cannot be used.
        Stopped: asked to stop, after saving.
    """
    reporter = session.reporter
    reporter.phase("load")
    tokenizer = models.load_tokenizer(recipe.model_name_or_path, recipe.model_revision)
    encoder = make_encoder(recipe, session, tokenizer)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        prompt, chosen, rejected = preference(encoder, row)
        ids = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        return ids | {COLUMN: question_hash(row["question"])}

    pairs = PairRows(recipe, session, encode, BatchTokenizing(encoder, session.run, recipe.stage))
    base = models.load_causal_lm(recipe, session.device)
    limits.check_tokens(base, tokenizer, recipe.model_name_or_path)
    limits.check_length(
        base, recipe.model_name_or_path, recipe.max_length, f"`max_length={recipe.max_length}`", reporter
    )
    callback = RunCallback(session, checkpoint.Retention.of(recipe), EvalSampler(recipe, encoder, session.requests))
    trainer = GuardedDPOTrainer(
        model=models.add_lora(base, recipe, "CAUSAL_LM"),
        args=DPOConfig(
            **hf_trainer.training_arguments(recipe, hf_trainer.scratch_dir(session)),
            loss_type=list(recipe.losses),
            loss_weights=recipe.loss_weights or None,
            beta=recipe.beta,
            label_smoothing=recipe.label_smoothing,
        ),
        train_dataset=pairs.training,
        eval_dataset=pairs.held_out,
        processing_class=tokenizer,
        callbacks=[callback],
        data_collator=DataCollatorForPreference(pad_token_id=models.pad_id(tokenizer), max_length=recipe.max_length),
    )
    bf16, autocast = recipe.bf16 or recipe.fp16, trainer.compute_loss_context_manager()
    right_padding.drop_masks(trainer.model, session.device, autocast, bf16=bf16)
    hf_trainer.try_save(trainer, tokenizer, recipe, session)
    with hf_trainer.saving_first(trainer, callback):
        hf_trainer.fit(trainer, callback, recipe, session)
        reporter.phase("evaluate")
        evaluation = hf_trainer.final_evaluation(trainer)
    pairs.report_streamed()
    hf_trainer.save(trainer, encoder, recipe, session)
    losses = hf_trainer.logged(trainer, "loss")
    return {
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "eval_loss": evaluation["eval_loss"],
        **{name: evaluation[f"eval_{name}"] for name in _RESULTS},
        "steps": trainer.state.global_step,
        **pairs.dropped,
    }
