"""2 score: everything that judges a response, each part kept apart, and their weighted sum.

score = ``reward_model_weight`` · reward model + ``reward_fn_weight`` · function
− ``length_penalty`` · tokens beyond ``length_penalty_start`` − ``repetition_penalty`` · share of repeated n-grams.

Normalisation, clipping, the baseline and the penalty of a missing end come after the sum.
"""

from collections.abc import Mapping, Sequence
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
        self._function = RewardFunction(recipe.reward_fn, recipe.reward_fn_path) if recipe.reward_fn else None

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
        """The weighted sum of :meth:`parts`, float32 ``[B]``."""
        weights = {MODEL: self._recipe.reward_model_weight, FUNCTION: self._recipe.reward_fn_weight}
        return torch.stack([weights.get(name, 1.0) * values for name, values in parts.items()]).sum(0)

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)
