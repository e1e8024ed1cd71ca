"""Whether a held-out split is large enough to show an effect: the 95 % interval of its metric, by the normal formula.

Half of the interval's width is 1.96 · σ / √n. A pair is right or wrong, with σ = √(p (1 − p)); a mean reward's σ is not
known before the run, so that its interval is said in units of σ.
"""

import math

from ..contract.recipe import PPORecipe, SFTRecipe, TrainedRecipe
from .prompt_overlap import held_out_rows

ACCURACY = 0.65
"""Accuracy of published reward models on held-out pairs of people (StackLLaMA 67 %, arXiv:2203.02155 about 70 %)."""
EFFECT = 0.05
"""Difference of accuracies that a split should show, as between a reward model and "the longer response wins"."""
EFFECT_OF_REWARD = 0.5
"""Difference of mean rewards that a split should show, in standard deviations: a medium effect (Cohen 1988)."""
_QUANTILE = 1.96


def half_width(deviation: float, rows: int) -> float:
    """Return half of the width of a mean's 95 % interval, in the unit of ``deviation``."""
    return _QUANTILE * deviation / math.sqrt(rows)


def rows_needed(deviation: float, effect: float) -> int:
    """Return the number of rows whose interval is no wider than ``effect`` to either side."""
    return math.ceil((_QUANTILE * deviation / effect) ** 2)


def find_too_small(recipe: TrainedRecipe) -> str | None:
    """Find a held-out split whose interval is wider than the effect; SFT has no such metric."""
    if isinstance(recipe, SFTRecipe):
        return None
    by_reward = isinstance(recipe, PPORecipe)
    deviation = 1.0 if by_reward else math.sqrt(ACCURACY * (1 - ACCURACY))
    needed = rows_needed(deviation, EFFECT_OF_REWARD if by_reward else EFFECT)
    rows = held_out_rows(recipe, needed)
    if rows is None or not 0 < rows < needed:
        return None
    by_limit = recipe.max_eval_samples is not None and recipe.max_eval_samples <= rows
    key = f"max_eval_samples={rows}" if by_limit else f"dataset_test_split={recipe.dataset_test_split}"
    width = half_width(deviation, rows)
    if by_reward:
        return (
            f"`{key}`: the mean reward of {rows} held-out prompts is known to ± {width:.1f} standard deviations "
            f"(95 %); an effect of {EFFECT_OF_REWARD:g} needs {needed} prompts or more."
        )
    return (
        f"`{key}`: an accuracy of {100 * ACCURACY:.0f} % on {rows} held-out pairs is known to ± {100 * width:.1f} "
        f"points (95 %); an effect of {100 * EFFECT:.0f} points needs {needed} pairs or more."
    )
