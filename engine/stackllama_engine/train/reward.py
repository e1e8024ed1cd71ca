"""The reward model: TRL's RewardTrainer on pairs, with the score head trained, kept and measured.

Departs from the published script: prompt and answer are tokenised apart, texts end with the end token, the score
head is float32, and the final figures are computed pair by pair over the whole held-out set, ties apart, instead of
averaged over batches.
"""

from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch.nn.functional import logsigmoid
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from ..contract.errors import DataError
from ..contract.recipe import RewardRecipe
from . import hf_trainer, models
from .rows import encode_text, evaluation_rows, training_rows
from .session import Session

_COLUMNS = ("question", "response_j", "response_k")


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
        train_pairs, dropped = _short_enough(training_rows(recipe, session.run, _COLUMNS, encode), recipe.max_length)
        held_out, held_out_dropped = _short_enough(
            evaluation_rows(recipe, session.run, _COLUMNS, encode), recipe.max_length
        )
    if dropped or held_out_dropped:
        reporter.health(
            f"{dropped} training and {held_out_dropped} evaluation pairs dropped: "
            f"one of their texts is longer than {recipe.max_length} tokens"
        )
    base = models.load_reward_base(recipe, models.pad_id(tokenizer), session.device)
    callback = hf_trainer.RunCallback(reporter, session.requests, recipe.save_total_limit)
    trainer = RewardTrainer(
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
    hf_trainer.fit(trainer, callback, reporter)
    reporter.phase("evaluate")
    figures = pair_figures(held_out_scores(trainer))
    reporter.metrics(trainer.state.global_step, {f"eval_{name}": value for name, value in figures.items()})
    hf_trainer.save(trainer, tokenizer, recipe, session)
    return {
        **figures,
        "steps": trainer.state.global_step,
        "dropped_too_long": dropped + held_out_dropped,
    }


def held_out_scores(trainer: RewardTrainer) -> torch.Tensor:
    """Scores of every held-out pair, over all ranks.

    Returns:
        float32 ``[N, 2]`` on the CPU: the better text's score, the worse text's.
    """
    model: Any = trainer.model
    model.eval()
    scores: list[torch.Tensor] = []
    with torch.no_grad():
        for batch in trainer.get_eval_dataloader():
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


def _short_enough(pairs: Dataset | IterableDataset, max_length: int) -> tuple[Dataset | IterableDataset, int]:
    """Pairs whose texts both fit, and how many did not (0 for a stream, whose pairs are dropped as they come)."""
    kept = pairs.filter(_fits, fn_kwargs={"max_length": max_length})
    if isinstance(pairs, IterableDataset) or isinstance(kept, IterableDataset):
        return kept, 0
    if not len(kept):
        raise DataError(
            f"None of {len(pairs)} pairs has both texts within `max_length: {max_length}` tokens; raise it."
        )
    return kept, len(pairs) - len(kept)


def _fits(row: dict[str, list[int]], max_length: int) -> bool:
    return len(row["chosen_ids"]) <= max_length and len(row["rejected_ids"]) <= max_length
