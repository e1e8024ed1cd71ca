"""Statistics of held-out pairs. Shapes: ``N`` pairs, ``Q`` questions, ``R`` resamples."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...contract.audit import Bucket, Interval, Reliability

Array = NDArray[np.float64]
RESAMPLES = 2000
_OUTCOMES = 1000
_CELLS = 1_000_000  # numbers that are held at a time
_LEVEL = 95.0
_QUANTILE = 1.959964  # of the standard normal distribution, at 97.5 %


class Clusters:
    """Bootstrap over questions: a resample draws as many questions as there are, with all pairs of each.

    The same draws serve every statistic, so that differences are of paired resamples.

    Args:
        questions: which question each pair belongs to, ``[N]``.
        seed: of the draws.
    """

    def __init__(self, questions: Sequence[int], seed: int = 0) -> None:
        _, self._index = np.unique(np.asarray(questions), return_inverse=True)  # [N], 0 … Q − 1
        self.count = int(self._index.max()) + 1 if len(self._index) else 0
        self._draws: NDArray[np.uint8] | None = None  # [R, Q]
        self._seed = seed

    def mean(self, values: Array, counted: NDArray[np.bool_] | None = None) -> Interval:
        """Return the mean over pairs with its interval.

        Args:
            values: of each pair, ``[N]``.
            counted: the pairs that count, ``[N]``; None: all. None of them: 0 to 1 says that nothing is known.
        """
        weights = np.ones(len(values)) if counted is None else counted.astype(np.float64)
        if not weights.sum():
            return Interval(0.5, 0.0, 1.0)
        sums = self._by_question(values * weights)
        sizes = self._by_question(weights)
        means = self._resampled(sums, sizes)
        low, high = np.percentile(means, [(100 - _LEVEL) / 2, (100 + _LEVEL) / 2])
        return Interval(float(sums.sum() / sizes.sum()), float(low), float(high))

    def _by_question(self, values: Array) -> Array:
        return np.bincount(self._index, weights=values, minlength=self.count).astype(np.float64)  # [Q]

    def _resampled(self, sums: Array, sizes: Array) -> Array:
        """Return the mean of each resample that holds any pair that counts, ``[≤ R]``."""
        if self._draws is None:
            draw = np.random.default_rng(self._seed)
            self._draws = np.empty((RESAMPLES, self.count), dtype=np.uint8)  # a question is drawn once on average
            for row in self._draws:
                row[:] = np.bincount(draw.integers(self.count, size=self.count), minlength=self.count)
        both = np.stack([sums, sizes], axis=1).astype(np.float32)  # [Q, 2]; halves, exact in float32
        rows = max(1, _CELLS // self.count)
        parts = [self._draws[start : start + rows].astype(np.float32) @ both for start in range(0, RESAMPLES, rows)]
        drawn = np.concatenate(parts).astype(np.float64)  # [R, 2]
        drawn = drawn[drawn[:, 1] > 0]
        return drawn[:, 0] / drawn[:, 1]


def wilson(successes: int, trials: int) -> Interval:
    """Return a share of independent trials with its score interval (Wilson 1927), which holds for few of them too."""
    share, square = successes / trials, _QUANTILE**2 / trials
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def right(margins: Array) -> Array:
    """Return 1 for each pair whose preferred response scores higher, 0.5 for a tie, 0 otherwise, ``[N]``."""
    return (np.sign(margins) + 1) / 2


def buckets(
    keys: Array, values: Array, clusters: Clusters, count: int, label: Callable[[float, float], str]
) -> list[Bucket]:
    """Return the accuracy of pairs by quantiles of a key; equal keys stay together, so there may be fewer.

    Args:
        keys: what the pairs are sorted by, ``[N]``.
        values: :func:`right` of each, ``[N]``.
        clusters: their questions.
        count: number of buckets.
        label: of a bucket with keys from … to ….
    """
    edges = np.unique(np.quantile(keys, np.linspace(0, 1, count + 1)))
    place = np.clip(np.searchsorted(edges, keys, side="right") - 1, 0, max(len(edges) - 2, 0))  # [N]
    made: list[Bucket] = []
    for one in np.unique(place):
        inside = place == one
        made.append(
            Bucket(
                label=label(float(keys[inside].min()), float(keys[inside].max())),
                pairs=int(inside.sum()),
                accuracy=clusters.mean(values, inside),
            )
        )
    return made


def calibration(margins: Array, bins: int = 10) -> tuple[list[Reliability], float]:
    """Return predicted and observed accuracy of pairs by confidence, and the expected calibration error.

    The model prefers the higher score with probability σ(|margin|) (Bradley and Terry 1952); ties are left out.
    """
    margins = margins[margins != 0]
    if not len(margins):
        return [], 0.0
    (predicted, place), observed = _confidence(margins, bins), (margins > 0).astype(np.float64)
    curve: list[Reliability] = []
    for one in np.unique(place):
        inside = place == one
        curve.append(
            Reliability(
                predicted=float(predicted[inside].mean()),
                observed=float(observed[inside].mean()),
                pairs=int(inside.sum()),
            )
        )
    error = sum(abs(one.predicted - one.observed) * one.pairs for one in curve) / len(margins)
    return curve, error


def calibration_limit(margins: Array, bins: int = 10, seed: int = 0) -> float:
    """Return the error that a calibrated model of these margins stays below with a probability of 97.5 %.

    The error of few pairs is not 0 by chance alone: outcomes are drawn from the confidence itself.
    """
    margins = margins[margins != 0]
    if not len(margins):
        return 0.0
    predicted, place = _confidence(margins, bins)
    order = np.argsort(place, kind="stable")
    predicted, place = predicted[order], place[order]
    starts = np.flatnonzero(np.diff(place, prepend=-1))  # of the bins
    draw = np.random.default_rng(seed)
    errors: list[Array] = []
    rows = max(1, _CELLS // len(margins))
    for begin in range(0, _OUTCOMES, rows):
        outcomes = draw.random((min(rows, _OUTCOMES - begin), len(margins)), dtype=np.float32) < predicted  # [r, N]
        gaps = np.add.reduceat(outcomes - predicted, starts, axis=1)  # [r, bins]
        errors.append(np.abs(gaps).sum(axis=1) / len(margins))
    return float(np.percentile(np.concatenate(errors), (100 + _LEVEL) / 2))


def _confidence(margins: Array, bins: int) -> tuple[Array, NDArray[np.int64]]:
    """Return σ(|margin|) of each pair and the bin that it is in, ``[N]`` each."""
    predicted = 1 / (1 + np.exp(-np.abs(margins)))
    return predicted, np.minimum(((predicted - 0.5) * 2 * bins).astype(np.int64), bins - 1)


def rank_correlation(one: Array, other: Array, questions: Sequence[int]) -> float:
    """Return Spearman's correlation of two values of responses within questions: each question's mean is taken away.

    Args:
        one: of each response, ``[2N]``.
        other: likewise.
        questions: of each response, ``[2N]``.
    """
    _, index = np.unique(np.asarray(questions), return_inverse=True)
    sizes = np.bincount(index)
    centred = [values - (np.bincount(index, weights=values) / sizes)[index] for values in (one, other)]
    first, second = (_ranks(values) for values in centred)
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale else 0.0


def _ranks(values: Array) -> Array:
    """Return ranks; equal values share the mean of theirs."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[index]
