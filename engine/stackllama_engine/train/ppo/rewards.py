"""2 score: reward components of a response, each kept apart, and their weighted sum.

score = ``reward_model_weight`` · reward model + Σ ``reward_weights`` · functions
− ``length_penalty`` · tokens beyond ``length_penalty_start`` − ``repetition_penalty`` · share of repeated n-grams.

A function may abstain from a response: its component is then NaN, and left out of the sum. Where all do and there is no
reward model either, the score is the mean of the other responses' (:func:`fill_abstained`), which favours it neither
way.

After the sum come normalisation and clipping (:class:`RewardScaling`), then the baseline and the penalty of a missing
end (:func:`final_scores`).

Shapes: ``B`` responses.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...contract.errors import StageError
from ...contract.recipe import OWN_COMPONENTS, PPORecipe
from ...contract.reward_parameters import columns_read, unused_option
from ..encoding import Encoder
from ..reporting import Reporter
from . import losses
from .losses import Moments
from .response_text import ResponseText
from .reward_function import RewardFunction, score_all
from .scorers import load_scorer
from .shared_base import SharedBase

PREFIX = "reward/"
MODEL = f"{PREFIX}model"
LENGTH = f"{PREFIX}length_penalty"
REPETITION = f"{PREFIX}repetition_penalty"


class Unscored(StageError):
    """A rollout could not be scored; the policy is as sound as it was, and worth saving."""


@dataclass(frozen=True)
class Scores:
    """The scores of a rollout on their way into the rewards, ``[B]`` each; all but the first in PPO's units."""

    raw: Tensor
    """The weighted sum of the components."""
    scaled: Tensor
    """After normalisation and clipping."""
    final: Tensor
    """After the baseline and what a missing end costs."""


class Rewards:
    """The reward components of a recipe.

    Args:
        recipe: the PPO recipe.
        base: where the reward model's adapter goes, when it belongs to the same base.
        encoder: of the run's prompt format, with the policy's tokenizer.
        reporter: gets a notice of a second model in memory.

    Raises:
        StageError: reward model or function cannot be had.
    """

    def __init__(self, recipe: PPORecipe, base: SharedBase, encoder: Encoder, reporter: Reporter) -> None:
        self._recipe = recipe
        self._device = base.device
        self._stops = encoder.stop_ids
        self._model = load_scorer(recipe, base, encoder, reporter) if recipe.reward_model_path else None
        self._functions = [
            RewardFunction(function, recipe.reward_kwargs, recipe.reward_timeout, reporter.health)
            for function in recipe.functions
        ]
        if message := unused_option([function.keywords for function in self._functions], recipe.reward_kwargs):
            raise StageError(message)

    @property
    def columns_read(self) -> set[str] | None:
        """Columns that the reward functions read; None: all, because one has ``**kwargs``."""
        return columns_read(self._recipe, [function.keywords for function in self._functions])

    def check_length(self, tokens: int, keys: str, reporter: Reporter) -> None:
        """Compare the longest text with what a reward model of its own takes; see :func:`..limits.check_length`."""
        if self._model:
            self._model.check_length(tokens, keys, reporter)

    def components(
        self,
        texts: Sequence[ResponseText],
        responses: Sequence[Sequence[int]],
        micro_batch_size: int,
        tokens: int | None = None,
    ) -> dict[str, Tensor]:
        """Compute each component under its metric's name, float32 ``[B]``.

        The model's and the functions' are as they returned them, NaN where a function abstained; penalties at most 0.

        Args:
            texts: responses as text, ``B`` of them.
            responses: their tokens, the end token included.
            micro_batch_size: responses that the reward model reads at once.
            tokens: most tokens that it reads at once, padding included, instead of so many responses.

        Raises:
            StageError: a function failed.
        """
        recipe = self._recipe
        components: dict[str, Tensor] = {}
        if self._model:
            components[MODEL] = self._model(texts, micro_batch_size, tokens)
        for name, values in score_all(self._functions, texts).items():
            components[f"{PREFIX}{name}"] = self._column(values)
        if recipe.length_penalty:
            excess = [excess_length(len(ids), recipe.length_penalty_start) for ids in responses]
            components[LENGTH] = -recipe.length_penalty * self._column(excess)
        if recipe.repetition_penalty:
            without_end = [ids[:-1] if ids[-1] in self._stops else ids for ids in responses]
            shares = [repeated_share(ids, recipe.repetition_n_grams) for ids in without_end]
            components[REPETITION] = -recipe.repetition_penalty * self._column(shares)
        return components

    def total(self, components: Mapping[str, Tensor]) -> Tensor:
        """Compute the weighted sum of :meth:`components`, float32 ``[B]``; NaN where :meth:`abstained`."""
        weights = {MODEL: self._recipe.reward_model_weight}
        weights |= {f"{PREFIX}{function.name}": function.weight for function in self._functions}
        functions = functions_of(components)
        weighted = [
            weights.get(name, 1.0) * (values.nan_to_num(0) if name in functions else values)  # an abstention adds 0
            for name, values in components.items()
        ]
        return torch.stack(weighted).sum(0).masked_fill(self.abstained(components), torch.nan)  # [B]

    def abstained(self, components: Mapping[str, Tensor]) -> Tensor:
        """Return which responses have no score, because all functions abstained and there is no model; bool ``[B]``.

        A reward model abstains from none. A function whose weight is 0 only watches, unless there are no others.
        """
        counting = [f"{PREFIX}{function.name}" for function in self._functions if function.weight]
        counting = counting or functions_of(components)
        if MODEL in components or not counting:
            return torch.zeros_like(next(iter(components.values())), dtype=torch.bool)
        return torch.stack([components[name].isnan() for name in counting]).all(0)

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)


def functions_of(components: Iterable[str]) -> list[str]:
    """Return those of components, by their metrics' names, that are functions'."""
    own = {f"{PREFIX}{name}" for name in OWN_COMPONENTS}
    return [name for name in components if name.startswith(PREFIX) and name not in own]


def fill_abstained(scores: Tensor, missing: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Fill missing scores with the mean of the others over all ranks; NaN if there are no others.

    Args:
        scores: ``[B]``.
        missing: which of them are missing, bool ``[B]``.
        reduce: sum over all ranks; every rank calls it.
    """
    total, count = reduce(torch.stack([scores.masked_fill(missing, 0).double().sum(), (~missing).double().sum()]))
    return torch.where(missing, (total / count).to(scores.dtype), scores)


class RewardScaling:
    """Scores in comparable units: normalised by the running statistics of all scores so far, then clipped.

    Score reparameterisation of PPO-max (arXiv:2307.04964, section 5.3.1). What it remembers is the same on every rank.

    Per rollout: :meth:`update`, then :meth:`scale`.

    Args:
        normalise: subtract the running mean, then divide by the running standard deviation.
        cliprange: clip to ± this afterwards; None: do not clip.
        reduce: sum over all ranks.
    """

    def __init__(self, normalise: bool, cliprange: float | None, reduce: Callable[[Tensor], Tensor]) -> None:
        self.moments = Moments()
        self._normalise = normalise
        self._cliprange = cliprange
        self._reduce = reduce

    def update(self, scores: Tensor) -> None:
        """Merge the total scores of a rollout, ``[B]``, into the running statistics; collective."""
        if self._normalise:
            self.moments = self.moments.merge(self._moments(scores))

    def scale(self, scores: Tensor) -> Tensor:
        """Normalise by the running statistics, then clip; ``[B]`` in and out."""
        scores = self._normalised(scores)
        return scores if self._cliprange is None else scores.clamp(-self._cliprange, self._cliprange)

    def metrics(self, scores: Tensor) -> dict[str, float]:
        """Return running mean and standard deviation, and the fraction of ``scores``, ``[B]``, that is clipped.

        Each only where it is in use; collective.
        """
        metrics: dict[str, float] = {}
        if self._normalise:
            metrics |= {"objective/score_mean": self.moments.mean, "objective/score_std": self.moments.std}
        if self._cliprange is not None:
            outside = (self._normalised(scores).abs() > self._cliprange).double().sum()
            clipped, count = self._reduce(torch.stack([outside, torch.full_like(outside, len(scores))])).tolist()
            metrics["objective/score_clipfrac"] = clipped / count
        return metrics

    def _normalised(self, scores: Tensor) -> Tensor:
        return losses.normalise(scores, self.moments) if self._normalise else scores

    def _moments(self, scores: Tensor) -> Moments:
        """Compute those of all ranks, in float64, so that the number of ranks makes no measurable difference."""
        scores = scores.double()  # [B]
        count, total = self._reduce(torch.stack([torch.full_like(scores[0], len(scores)), scores.sum()])).tolist()
        mean = total / count
        return Moments(count, mean, float(self._reduce((scores - mean).pow(2).sum())))


def final_scores(recipe: PPORecipe, scores: Tensor, texts: Sequence[ResponseText]) -> Tensor:
    """Subtract the baseline; penalise or replace the scores of responses without an end token; ``[B]``.

    Args:
        scores: in the units of the recipe's reward scaling, ``[B]``.
        texts: ``B`` of them.
    """
    return with_ends(recipe, scores - recipe.reward_baseline, texts)


def with_ends(recipe: PPORecipe, scores: Tensor, texts: Sequence[ResponseText]) -> Tensor:
    """Penalise or replace the scores, ``[B]``, of responses without an end token."""
    ended = torch.tensor([response.ended for response in texts], device=scores.device)  # bool [B]
    scores = scores - recipe.eos_penalty * ~ended
    if recipe.missing_eos_reward is not None:
        scores = scores.masked_fill(~ended, recipe.missing_eos_reward)
    return scores


def excess_length(tokens: int, start: int) -> int:
    """Count tokens beyond ``start``; 0 for a response that is not longer.

    Length and repetition are known ways of cheating a reward model: StackLLaMA's policy learned to repeat code fences
    (https://huggingface.co/blog/stackllama).
    """
    return max(0, tokens - start)


def repeated_share(ids: Sequence[int], n: int) -> float:
    """Compute the share of a response's n-grams that occur in it before: 1 − distinct-n (arXiv:1510.03055, section 5).

    Args:
        ids: the response's tokens, without its end token.
        n: tokens of an n-gram.

    Returns:
        0 where no n-gram comes twice (or there is none), near 1 where one is repeated over and over.
    """
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
