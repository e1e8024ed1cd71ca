"""What an audit reads and scores: the pairs of a recipe as the reward stage makes them, and texts as token ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from ...contract.audit import Audit
from ...contract.recipe import RewardRecipe
from ...data.sources import unique_questions
from ...data.splits import question_hash
from .. import models
from ..encoding import Encoder, source_rows
from ..pair_filter import PairFilter
from ..pair_rows import COLUMNS
from ..stage_rows import pair
from .probes import TEXTS, Row
from .report import Pairs, audit
from .statistics import Array

TRAINING_PAIRS = 4000
"""Pairs that the rule of words is fitted on."""


class Scorer:
    """A reward model that scores texts.

    Args:
        model: a sequence classifier with one label, with or without an adapter.
        pad: token id that rows are padded with.
        batch: texts per forward pass.
        bf16: whether passes run under bfloat16 autocast.
    """

    def __init__(self, model: Any, pad: int, batch: int, *, bf16: bool) -> None:
        self._model = model
        self._pad = pad
        self._batch = batch
        self._bf16 = bf16

    @torch.no_grad()
    def __call__(self, texts: Sequence[list[int]]) -> Array:
        """Return the scores, ``[N]``."""
        device = self._model.device
        scores = np.empty(len(texts))
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # little padding
        was_training = self._model.training
        self._model.eval()
        for start in range(0, len(order), self._batch):
            places = order[start : start + self._batch]
            rows = [torch.tensor(texts[place]) for place in places]
            ids = pad_sequence(rows, batch_first=True, padding_value=self._pad).to(device)  # [b, T]
            lengths = torch.tensor([len(row) for row in rows], device=device)
            mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]  # [b, T]
            with torch.autocast(device.type, torch.bfloat16, enabled=self._bf16):
                logits = self._model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
            scores[places] = logits.squeeze(-1).float().cpu().numpy()
        self._model.train(was_training)
        return scores


def audit_model(recipe: RewardRecipe, encoder: Encoder, model: Any, scores: Array | None = None) -> Audit:
    """Audit a reward model on the pairs of its recipe.

    Args:
        recipe: names data and limits.
        encoder: of the prompt format that it was trained with.
        model: the trained classifier.
        scores: of the held-out pairs, ``[N, 2]``, where they are known already.

    Raises:
        DataError: the data cannot be read any more, or none of its pairs can be used.
    """
    pad = models.pad_id(encoder.tokenizer)
    score = Scorer(model, pad, 2 * recipe.per_device_eval_batch_size, bf16=recipe.bf16)
    held_out, rows = _pairs(recipe, encoder, recipe.dataset_test_split, recipe.max_eval_samples)
    most = min(TRAINING_PAIRS, recipe.max_train_samples or TRAINING_PAIRS)
    training, _ = _pairs(recipe, encoder, recipe.dataset_train_split, most)
    if scores is None or len(scores) != len(held_out.chosen):
        flat = score([*held_out.chosen, *held_out.rejected])
        scores = flat.reshape(2, -1).T
    different = [row for row, _ in zip(unique_questions(rows), range(TEXTS), strict=False)]
    return audit(scores, held_out, training, different, encoder, score, recipe.max_length)


def _pairs(recipe: RewardRecipe, encoder: Encoder, split: str, limit: int | None) -> tuple[Pairs, list[Row]]:
    """Return the usable pairs of a split, encoded and as text."""
    usable = PairFilter(recipe.max_length, split)
    pairs, rows = Pairs([], [], []), list[Row]()
    for row in source_rows(recipe, split, COLUMNS, limit):
        chosen, rejected = pair(encoder, row)
        if usable.keeps({"chosen_ids": chosen, "rejected_ids": rejected}):
            pairs.chosen.append(chosen)
            pairs.rejected.append(rejected)
            pairs.questions.append(question_hash(row["question"]))
            rows.append(row)
    return pairs, rows
