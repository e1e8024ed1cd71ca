"""Scores in comparable units: normalised by the running statistics of all scores so far, then clipped.

Score reparameterisation of PPO-max (arXiv:2307.04964, section 5.3.1).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from . import losses
from .losses import Moments


class RewardScaling:
    """Normalises and clips scores; what it remembers is the same on every rank.

    Args:
        normalise: divide by the running standard deviation after subtracting the running mean.
        cliprange: clip to ± this afterwards, None: not.
        reduce: sum over all ranks.
    """

    def __init__(self, normalise: bool, cliprange: float | None, reduce: Callable[[Tensor], Tensor]) -> None:
        self.moments = Moments()
        self._normalise = normalise
        self._cliprange = cliprange
        self._reduce = reduce

    def __call__(self, scores: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Take in the total scores of a rollout, ``[B]``; every rank calls it.

        Returns:
            the scores in their new units, ``[B]``, and metrics: the running mean and standard deviation, and the
            fraction clipped; each only where it is in use.
        """
        metrics: dict[str, float] = {}
        if self._normalise:
            self.moments = self.moments.merge(self._moments(scores))
            scores = losses.normalise(scores, self.moments)
            metrics |= {"objective/score_mean": self.moments.mean, "objective/score_std": self.moments.std}
        if self._cliprange is not None:
            outside = (scores.abs() > self._cliprange).double().sum()
            clipped, count = self._reduce(torch.stack([outside, torch.full_like(outside, len(scores))])).tolist()
            metrics["objective/score_clipfrac"] = clipped / count
            scores = scores.clamp(-self._cliprange, self._cliprange)
        return scores, metrics

    def _moments(self, scores: Tensor) -> Moments:
        """Of the scores of all ranks; float64, so that the number of ranks makes no difference worth the name."""
        scores = scores.double()
        count, total = self._reduce(torch.stack([torch.full_like(scores[0], len(scores)), scores.sum()])).tolist()
        mean = total / count
        return Moments(count, mean, float(self._reduce((scores - mean).pow(2).sum())))
