"""2 score: everything that judges a response, each part kept apart, and their weighted sum.

score = ``reward_model_weight`` · reward model + ``reward_fn_weight`` · function
− ``length_penalty`` · tokens beyond ``length_penalty_start`` − ``repetition_penalty`` · share of repeated n-grams.

A function may abstain from a response: its part is then NaN, and left out of the sum. Where nothing else judges the
response either, its score is the mean of those that were judged (:func:`fill_unjudged`), which speaks neither for it
nor against it.

Normalisation, clipping, the baseline and the penalty of a missing end come after the sum.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...contract.recipe import PPORecipe
from ..models import eos_id
from ..report import Reporter
from . import penalties
from .reward_function import RewardFunction
from .scorer import Answer, load_scorer
from .shared_base import SharedBase

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFIX = "reward/"
MODEL = f"{PREFIX}model"
FUNCTION = f"{PREFIX}function"
ABSTAINED = f"{PREFIX}function_abstained"
"""Share of the responses that the function abstained from."""
LENGTH = f"{PREFIX}length_penalty"
REPETITION = f"{PREFIX}repetition_penalty"


class Rewards:
    """The parts of a recipe's reward.

    Args:
        recipe: the PPO recipe.
        base: where the reward model's adapter goes, when it belongs to the same base.
        tokenizer: the policy's.
        reporter: told about a second model in memory.

    Raises:
        StageError: reward model or function cannot be had.
    """

    def __init__(
        self, recipe: PPORecipe, base: SharedBase, tokenizer: "PreTrainedTokenizerBase", reporter: Reporter
    ) -> None:
        self._recipe = recipe
        self._device = base.device
        self._eos = eos_id(tokenizer)
        self._model = load_scorer(recipe, base, tokenizer, reporter) if recipe.reward_model_path else None
        self._function = (
            RewardFunction(recipe.reward_fn, recipe.reward_fn_path, reporter.health) if recipe.reward_fn else None
        )

    def check_length(self, tokens: int, keys: str, reporter: Reporter) -> None:
        """Compare the longest text with what a reward model of its own takes; see :func:`..limits.check_length`."""
        if self._model:
            self._model.check_length(tokens, keys, reporter)

    def parts(
        self, answers: Sequence[Answer], responses: Sequence[Sequence[int]], size: int | None = None
    ) -> dict[str, Tensor]:
        """Each part's opinion by its metric's name, float32 ``[B]``: the model's and the function's as they gave it, a
        penalty as what is subtracted (so at most 0).

        Args:
            answers: responses as text, ``B`` of them.
            responses: their tokens, the end token included.
            size: answers that the reward model reads at once; None: the recipe's.

        Raises:
            StageError: the function failed.
        """
        recipe = self._recipe
        found: dict[str, Tensor] = {}
        if self._model:
            self._model.batch_size = size or self._model.batch_size
            found[MODEL] = self._model(answers)
        if self._function:
            found[FUNCTION] = self._column(self._function([a.question for a in answers], [a.text for a in answers]))
        if recipe.length_penalty:
            excess = [penalties.excess_length(len(ids), recipe.length_penalty_start) for ids in responses]
            found[LENGTH] = -recipe.length_penalty * self._column(excess)
        if recipe.repetition_penalty:
            texts = [ids[:-1] if ids[-1] == self._eos else ids for ids in responses]
            shares = [penalties.repeated_share(ids, recipe.repetition_n_grams) for ids in texts]
            found[REPETITION] = -recipe.repetition_penalty * self._column(shares)
        return found

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of :meth:`parts`, float32 ``[B]``; NaN where every judge abstained."""
        weights = {MODEL: self._recipe.reward_model_weight, FUNCTION: self._recipe.reward_fn_weight}
        given = {name: values.nan_to_num(0) if name == FUNCTION else values for name, values in parts.items()}
        total = torch.stack([weights.get(name, 1.0) * values for name, values in given.items()]).sum(0)
        return total.masked_fill(unjudged(parts), torch.nan)

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)


def unjudged(parts: Mapping[str, Tensor]) -> Tensor:
    """Responses that every judge abstained from, bool ``[B]``; a reward model abstains from none."""
    abstained = parts[FUNCTION].isnan() if FUNCTION in parts else None
    return torch.zeros_like(parts[MODEL], dtype=torch.bool) if abstained is None or MODEL in parts else abstained


def fill_unjudged(scores: Tensor, without: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Scores ``[B]`` with the mean of the judged responses of all ranks where there is none; NaN if there are none.

    Args:
        without: those that nobody judged, bool ``[B]``.
        reduce: sum over all ranks; every rank calls it.
    """
    total, count = reduce(torch.stack([scores.masked_fill(without, 0).double().sum(), (~without).double().sum()]))
    return torch.where(without, (total / count).to(scores.dtype), scores)
