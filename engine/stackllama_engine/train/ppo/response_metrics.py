"""Metrics of a rollout that the health rules read beside its means: spread, length, repetition, range of the scores.

Shapes: ``B`` responses of this rank; every statistic is over the responses of all ranks.
"""

from pathlib import Path
from typing import Any

import torch

from ...contract.metrics import LENGTH_CORRELATION, OUTSIDE_RANGE, REPETITION, SCORE_RANGE, SCORES_STD
from ...contract.recipe import PPORecipe
from ...contract.run_files import UNDECODABLE, decode_file
from ..session import Session
from .rewards import MODEL, repeated_share
from .rollout import Rollout
from .update import Reduce

Range = tuple[float, float]
"""Lowest and highest score."""
_N_GRAM = 3


def response_metrics(rollout: Rollout, seen: Range | None, reduce: Reduce) -> dict[str, float]:
    """Compute :data:`SCORES_STD`, :data:`LENGTH_CORRELATION`, :data:`REPETITION` and :data:`OUTSIDE_RANGE`; collective.

    Args:
        rollout: of this rank.
        seen: scores that the reward model gave held-out pairs of its own; None: not known, and not reported.
        reduce: sum over all ranks.
    """
    scores, lengths = rollout.scores.double(), rollout.mask.sum(1).double()  # [B] each
    repeated = [repeated_share(text.ids[:-1] if text.ended else text.ids, _N_GRAM) for text in rollout.texts]
    columns = [torch.ones_like(scores), scores, lengths, scores.new_tensor(repeated)]  # [B] each
    if seen is not None:
        reward = rollout.components[MODEL].double()  # [B]
        columns.append(((reward < seen[0]) | (reward > seen[1])).double())
    count, *totals = reduce(torch.stack(columns).sum(1)).tolist()
    means = [total / count for total in totals]
    # second moments around the means of all ranks
    score, length = scores - means[0], lengths - means[1]  # [B] each
    squares = reduce(torch.stack([score * score, length * length, score * length]).sum(1)) / count
    variance, length_variance, covariance = squares.tolist()
    metrics = {SCORES_STD: variance**0.5, REPETITION: means[2]}
    if variance > 0 and length_variance > 0:
        metrics[LENGTH_CORRELATION] = covariance / (variance * length_variance) ** 0.5
    return metrics | ({OUTSIDE_RANGE: means[3]} if seen is not None else {})


def common_range(recipe: PPORecipe, session: Session) -> Range | None:
    """Return :func:`seen_range` as the first rank reads it; collective, as ranks may not all see the same files."""
    mine = seen_range(recipe)
    first: list[float] | None = session.gather([list(mine) if mine else None])[0]
    return (first[0], first[1]) if first else None


def seen_range(recipe: PPORecipe) -> Range | None:
    """Return the scores that the recipe's reward model gave held-out pairs; None where its run does not say so."""
    if not recipe.reward_model_path:
        return None
    try:
        result: dict[str, Any] = decode_file(Path(recipe.reward_model_path).parent / "result.json", dict[str, Any])
        low, high = map(float, result[SCORE_RANGE])
    except (OSError, KeyError, TypeError, ValueError, *UNDECODABLE):
        return None
    return low, high
