"""The reward model: TRL's RewardTrainer on pairs, with the score head trained, kept and measured.

Departs from the published script: prompt and answer are tokenised apart, texts end with the end token, the score
head is float32, and the final figures are computed pair by pair over the whole held-out set, ties apart, instead of
averaged over batches.
"""

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch.nn.functional import logsigmoid
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from ..contract.errors import DataError
from ..contract.recipe import RewardRecipe
from . import checkpoint, hf_trainer, limits, models
from .guard import Guarded
from .rows import encode_text, evaluation_rows, training_rows
from .session import Session

_COLUMNS = ("question", "response_j", "response_k")


class GuardedRewardTrainer(Guarded, RewardTrainer):
    """TRL's, which survives a NaN and a full disk."""


def run(recipe: RewardRecipe, session: Session) -> dict[str, Any]:
    """Run the stage to its end; returns the facts for ``result.json``.

    Raises:
        StackllamaError: model or data cannot be used.
        Stopped: asked to stop, after saving.
    """
    reporter = session.reporter
    reporter.phase("load")
    tokenizer = models.load_tokenizer(recipe.model_name_or_path, recipe.model_revision)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "chosen_ids": encode_text(tokenizer, row["question"], row["response_j"]),
            "rejected_ids": encode_text(tokenizer, row["question"], row["response_k"]),
        }

    with session.main_first():
        short_enough, short_enough_held_out = LengthFilter(recipe.max_length), LengthFilter(recipe.max_length)
        train_pairs = short_enough(training_rows(recipe, session.run, _COLUMNS, encode))
        held_out = short_enough_held_out(evaluation_rows(recipe, session.run, _COLUMNS, encode))
    if short_enough.dropped or short_enough_held_out.dropped:
        reporter.health(
            f"{short_enough.dropped} training and {short_enough_held_out.dropped} evaluation pairs dropped: "
            f"one of their texts is longer than {recipe.max_length} tokens"
        )
    if notice := models.padding_notice(tokenizer):
        reporter.health(notice)
    base = models.load_reward_base(recipe, models.pad_id(tokenizer), session.device)
    limits.check_tokens(base, tokenizer, recipe.model_name_or_path)
    limits.check_length(
        base, recipe.model_name_or_path, recipe.max_length, f"`max_length={recipe.max_length}`", reporter
    )
    callback = hf_trainer.RunCallback(session, checkpoint.Retention.of(recipe))
    trainer = GuardedRewardTrainer(
        model=models.add_lora(base, recipe, "SEQ_CLS"),
        args=RewardConfig(
            **hf_trainer.training_arguments(recipe, hf_trainer.scratch_dir(session)),
            center_rewards_coefficient=recipe.center_rewards_coefficient,
            disable_dropout=False,  # TRL's default would turn off the recipe's lora_dropout
        ),
        train_dataset=train_pairs,
        eval_dataset=held_out,
        processing_class=tokenizer,
        callbacks=[callback],
    )
    hf_trainer.rehearse_save(trainer, tokenizer, recipe, session)
    with hf_trainer.saving_first(trainer, callback):
        hf_trainer.fit(trainer, callback, recipe, session)
        reporter.phase("evaluate")
        figures = pair_figures(held_out_scores(trainer, callback.look))
    reporter.metrics(trainer.state.global_step, {f"eval_{name}": value for name, value in figures.items()})
    hf_trainer.save(trainer, tokenizer, recipe, session)
    return {
        **figures,
        "steps": trainer.state.global_step,
        "dropped_too_long": short_enough.dropped + short_enough_held_out.dropped,
    }


def held_out_scores(trainer: RewardTrainer, each_batch: Callable[[], None] = lambda: None) -> torch.Tensor:
    """Scores of every held-out pair, over all ranks; ``each_batch`` is called on every rank between batches.

    Returns:
        float32 ``[N, 2]`` on the CPU: the better text's score, the worse text's.
    """
    model: Any = trainer.model
    model.eval()
    scores: list[torch.Tensor] = []
    with torch.no_grad():
        for batch in trainer.get_eval_dataloader():
            each_batch()
            inputs = trainer._prepare_inputs(batch)
            with trainer.compute_loss_context_manager():
                both = model(**inputs, use_cache=False).logits.squeeze(-1).float()  # [2B]: better, then worse
            pairs = torch.stack(both.chunk(2), dim=1)
            gathered: Any = trainer.accelerator.gather_for_metrics(pairs)
            scores.append(gathered.cpu())
    return torch.cat(scores)


def pair_figures(scores: torch.Tensor) -> dict[str, float]:
    """Figures of a set of scored pairs.

    Args:
        scores: ``[N, 2]``, the better text's score first.

    Returns:
        ``accuracy`` over the pairs whose scores differ, ``ties`` (equal scores, counted apart), ``margin`` (mean
        difference), ``loss`` (Bradley-Terry: −log σ(difference)), ``mean_reward`` and the number of ``pairs``.
    """
    margin = scores[:, 0] - scores[:, 1]
    ties = int((margin == 0).sum())
    return {
        "accuracy": int((margin > 0).sum()) / max(margin.numel() - ties, 1),
        "margin": float(margin.mean()),
        "loss": float(-logsigmoid(margin).mean()),
        "mean_reward": float(scores.mean()),
        "pairs": margin.numel(),
        "ties": ties,
    }


class LengthFilter:
    """Keeps pairs whose texts both fit, and counts those that do not.

    Args:
        max_length: most tokens a text may have.
    """

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.dropped = 0

    def __call__(self, pairs: Dataset | IterableDataset) -> Dataset | IterableDataset:
        """The pairs that fit; those of a stream are dropped and counted as they come.

        Raises:
            DataError: none fits.
        """
        if isinstance(pairs, IterableDataset):
            return pairs.filter(self._fits)
        kept = pairs.filter(self._fits, load_from_cache_file=False)
        if not len(kept):
            raise DataError(
                f"None of {len(pairs)} pairs has both texts within `max_length: {self.max_length}` tokens; raise it."
            )
        return kept

    def _fits(self, row: dict[str, list[int]]) -> bool:
        fits = max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= self.max_length
        self.dropped += not fits
        return fits
