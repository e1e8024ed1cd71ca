"""The reward model: TRL's RewardTrainer on pairs, with the score head trained, kept and measured.

Departs from the published script: prompt and answer are tokenised apart, texts end with the end token, the score
head is float32, and the final metrics are computed pair by pair over the whole held-out set, ties apart, instead of
averaged over batches.
"""

from typing import Any

import msgspec
from torch import Tensor
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from ..contract.audit import AUDIT_FILE
from ..contract.metrics import SCORE_RANGE, SCORE_STD
from ..contract.recipe import RewardRecipe
from ..data.splits import question_hash
from . import checkpoint, hf_trainer, limits, models, right_padding
from .audit.scoring import audit_model
from .disk_wait import write_result
from .encoding import Encoder
from .eval_metrics import PairWeighted, pair_metrics, pair_scores
from .guard import Guarded
from .loading import one_line
from .overlap import COLUMN
from .pair_rows import PairRows
from .prompt_formats import make_encoder
from .reward_micro_batches import TokenMicroBatches, whole_steps
from .run_callback import RunCallback
from .session import Session
from .stage_rows import pair
from .tokenizing import BatchTokenizing


class GuardedRewardTrainer(Guarded, PairWeighted, TokenMicroBatches, RewardTrainer):
    """TRL's, which survives a NaN and a full disk, and evaluates pair by pair."""


def run(recipe: RewardRecipe, session: Session) -> dict[str, Any]:
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
        chosen, rejected = pair(encoder, row)
        return {"chosen_ids": chosen, "rejected_ids": rejected, COLUMN: question_hash(row["question"])}

    pairs = PairRows(recipe, session, encode, BatchTokenizing(encoder, session.run, recipe.stage))
    if notice := models.padding_notice(tokenizer):
        reporter.health(notice)
    base = models.load_reward_base(recipe, models.pad_id(tokenizer), session.device)
    limits.check_tokens(base, tokenizer, recipe.model_name_or_path)
    limits.check_length(
        base, recipe.model_name_or_path, recipe.max_length, f"`max_length={recipe.max_length}`", reporter
    )
    callback = RunCallback(session, checkpoint.Retention.of(recipe))
    trainer = GuardedRewardTrainer(
        model=models.add_lora(base, recipe, "SEQ_CLS"),
        args=RewardConfig(
            **(hf_trainer.training_arguments(recipe, hf_trainer.scratch_dir(session)) | whole_steps(recipe)),
            center_rewards_coefficient=recipe.center_rewards_coefficient,
            disable_dropout=False,  # TRL's default would turn off the recipe's lora_dropout
        ),
        train_dataset=pairs.training,
        eval_dataset=pairs.held_out,
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.max_tokens = recipe.max_tokens_per_micro_batch
    bf16, autocast = recipe.bf16 or recipe.fp16, trainer.compute_loss_context_manager()
    right_padding.drop_masks(trainer.model, session.device, autocast, bf16=bf16)
    hf_trainer.try_save(trainer, tokenizer, recipe, session)
    with hf_trainer.saving_first(trainer, callback):
        hf_trainer.fit(trainer, callback, recipe, session)
        reporter.phase("evaluate")
        scores = pair_scores(trainer, trainer.get_eval_dataloader(), callback.check_stop)
        metrics = pair_metrics(scores)
    pairs.report_streamed()
    reporter.metrics(trainer.state.global_step, {f"eval_{name}": value for name, value in metrics.items()})
    hf_trainer.save(trainer, encoder, recipe, session)
    _audit(recipe, session, encoder, trainer, scores)
    return {
        **metrics,
        SCORE_RANGE: [float(scores.min()), float(scores.max())],
        SCORE_STD: float(scores.std(correction=0)),
        "steps": trainer.state.global_step,
        **pairs.dropped,
    }


def _audit(recipe: RewardRecipe, session: Session, encoder: Encoder, trainer: Any, scores: Tensor) -> None:
    """Write ``audit.json`` and say what speaks against the model; made by rank 0, while the others wait.

    The model is trained and saved: an audit that fails is a notice, and can be made later.
    """
    found = None
    if session.is_main:
        session.reporter.phase("audit")
        try:
            found = audit_model(recipe, encoder, trainer.model, scores.double().numpy())
        except Exception as error:  # noqa: BLE001 - data gone, no memory: whatever it is, the other ranks wait
            session.reporter.health(
                f"the audit was not made: {type(error).__name__}: {one_line(error)}; "
                f"`stackllama-console audit {session.run.id}` makes it"
            )
    for finding in found.findings if found else ():
        session.reporter.health(f"audit, {finding.verdict}: {finding.text}")
    session.state.wait_for_everyone()

    def write() -> None:
        if found is not None:
            session.run.write_json(AUDIT_FILE, msgspec.to_builtins(found))

    write_result(session.requests, session.reporter, trainer.state.global_step, write, what=AUDIT_FILE)
