"""Which checkpoint of a run to take: reward and KL of its evaluations, and the best of them by a stated rule.

A policy that is optimised against a reward model for longer has more reward and more KL, and from some KL on less of
what the reward stands for (arXiv:2210.10760). So something else selects: a reward function of weight 0, else PPO's
objective, score − `kl_coef` × KL. The last evaluation is taken unless the best one is better by more than noise: two
standard errors of their difference, as if on different prompts, which is cautious. Then it is the earliest within one
standard error of the best (The Elements of Statistical Learning, section 7.10) whose checkpoint is there at the end.
"""

import math
from collections.abc import Collection, Sequence

from msgspec import Struct

_NOISE = 2.0
"""Standard errors of a difference that are no noise."""


class Point(Struct, frozen=True, kw_only=True):
    """One evaluation on the held-out prompts, all means over them."""

    step: int
    reward: float
    kl: float
    """Nats per response."""
    selection: float
    selection_se: float
    """Standard error of ``selection``."""


class Choice(Struct, frozen=True, kw_only=True):
    """The evaluation to take."""

    criterion: str
    """What selects, in words."""
    points: list[Point]
    """All evaluations, by step."""
    step: int
    """Of the one to take."""
    is_worse_at_the_end: bool
    """Whether the last evaluation is below the best one by more than noise."""

    @property
    def text(self) -> str:
        """The choice in a sentence without a full stop."""
        taken, last = next(point for point in self.points if point.step == self.step), self.points[-1]
        if not self.is_worse_at_the_end:
            return f"the last step ({last.step}) is not known to be worse than any other by {self.criterion}"
        return (
            f"take step {taken.step}, not the last ({last.step}): {self.criterion} was {taken.selection:.3g} ± "
            f"{taken.selection_se:.2g} there and {last.selection:.3g} ± {last.selection_se:.2g} at the end, the reward "
            f"{taken.reward:.3g} and {last.reward:.3g}, the KL {taken.kl:.3g} and {last.kl:.3g}"
        )


def choose(criterion: str, points: Sequence[Point], kept: Collection[int]) -> Choice | None:
    """Choose an evaluation by the rule of the module; None where there are fewer than two.

    Args:
        criterion: what selects, in words.
        points: evaluations after step 0, in any order.
        kept: steps whose checkpoints are there. Where none within one standard error of the best is, the earliest of
            these is taken all the same.
    """
    ordered = sorted(points, key=lambda point: point.step)
    if len(ordered) < 2:
        return None
    best = max(ordered, key=lambda point: point.selection)
    enough = best.selection - best.selection_se
    last = ordered[-1]
    worse = best.selection - last.selection > _NOISE * math.hypot(best.selection_se, last.selection_se)
    near = [point for point in ordered if point.selection >= enough]
    taken = next((point for point in near if point.step in kept), near[0]) if worse else last
    return Choice(criterion=criterion, points=ordered, step=taken.step, is_worse_at_the_end=worse)
