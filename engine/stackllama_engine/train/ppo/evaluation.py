"""Evaluation on held-out prompts, by the policy and by the untouched base: one table of how they compare.

A policy that only became surer of itself is no better than its base at a lower temperature, and a reward that rises is
worth no more than the best of a few samples. So both are sampled over temperatures, greedily and best-of-n, on the same
prompts, and every mean comes with its standard error.

KL is that of what is sampled from against the base at the recipe's temperature, by the k1 estimator, per response. Of
best-of-n only a bound is known: log n − (n − 1)/n (arXiv:2112.09332, section 3; arXiv:2401.01879).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from ...contract.recipe import PPORecipe
from ..session import Session
from .algorithm import Algorithm
from .fault_tolerance import RunOnAllRanks
from .prompts import Prompt
from .rollout import RolloutWorker, sequence_sum
from .sampling import draw_noise
from .shared_base import SharedBase

Row = dict[str, Any]
EVALUATION_STEP = 2**31  # noise of every evaluation: no training step has this number
_GREEDY = 1e-4
"""Temperature that stands for 0: of two tokens the likelier one wins unless their logits differ by less than 0.002."""


class Variant(NamedTuple):
    """A model and how it is sampled."""

    policy: bool
    """True: the policy; False: the base without its adapter."""
    temperature: float
    """0: the likeliest token."""
    best_of: int = 1
    """Responses per prompt, of which the one with the best score counts."""

    @property
    def samples(self) -> range:
        """Noise index of each response.

        Best-of-n shares none with the one response that it is compared with, else it could not lose to it.
        """
        return range(1) if self.best_of == 1 else range(1, self.best_of + 1)

    @property
    def name(self) -> str:
        """Name in a table."""
        how = "greedy" if self.temperature == 0 else f"T = {self.temperature:g}"
        best = f", best of {self.best_of}" if self.best_of > 1 else ""
        return f"{'PPO' if self.policy else 'base'}, {how}{best}"


class Evaluator:
    """Evaluates the policy or its base on held-out prompts.

    Args:
        recipe: the PPO recipe.
        session: ranks share the prompts.
        base: policy and base.
        stops: tokens that end a response.
        algorithm: its first steps sample and score.
        worker: samples from another model than the policy.
        run_on_all_ranks: runs a phase on every rank until it fits.
        prompts: the held-out ones.
    """

    def __init__(
        self,
        recipe: PPORecipe,
        session: Session,
        base: SharedBase,
        stops: Sequence[int],
        algorithm: Algorithm,
        worker: RolloutWorker,
        run_on_all_ranks: RunOnAllRanks,
        prompts: Sequence[Prompt],
    ) -> None:
        self._recipe = recipe
        self._session = session
        self._base = base
        self._stops = stops
        self._algorithm = algorithm
        self._worker = worker
        self._run_on_all_ranks = run_on_all_ranks
        self._prompts = prompts
        self.trained = Variant(policy=True, temperature=recipe.temperature)
        """The policy as it is trained."""

    @torch.no_grad()
    def rows(self, variant: Variant | None = None, count: int | None = None) -> list[Row]:
        """Generate one row per prompt, those of all ranks in the order of the prompts, with the same noise each time.

        Args:
            variant: what is sampled; None: :attr:`trained`.
            count: only so many prompts.

        Raises:
            Abandoned: a stop is wanted.
            Unscored: responses cannot be scored.
            StageError: a score or log-probability is not finite.
        """
        session, variant = self._session, variant or self.trained
        total = len(self._prompts) if count is None else min(count, len(self._prompts))
        mine = range(session.rank, total, session.world_size)
        indices = mine or range(1)  # every rank takes part in the sums over all of them
        drawn = [self._sample(variant, indices, sample) for sample in variant.samples]
        best = [max(rows, key=lambda row: row["score"]) for rows in zip(*drawn, strict=True)]  # the first of equals
        return session.gather(best[: len(mine)])

    def _sample(self, variant: Variant, indices: Sequence[int], sample: int) -> list[Row]:
        """Generate and score one response per prompt; ``sample`` counts those of best-of-n."""
        recipe, worker = self._recipe, self._worker
        prompts = [self._prompts[index] for index in indices]
        noise = [draw_noise(recipe.seed, EVALUATION_STEP + sample, index, recipe.length_limits) for index in indices]
        acting = partial(self._base.acting, policy=variant.policy, temperature=variant.temperature or _GREEDY)
        if variant == self.trained:
            responses = self._algorithm.sample(prompts, noise, self._stops)
            rollout = self._algorithm.score(prompts, responses, run_critic=False)
        else:
            responses = self._run_on_all_ranks(lambda: worker.respond_here(prompts, noise, self._stops, acting()))
            rollout = self._algorithm.score(prompts, responses, acting, run_critic=False)
        worker.check_finite(rollout)
        kl = sequence_sum(rollout.old.logprobs - rollout.ref_logprobs, rollout.mask)  # [B]
        return worker.rows(rollout, kl)

    def compare(self, before: Sequence[Row], after: Sequence[Row], best: Row | None) -> list[Row]:
        """Build the comparison's table: the base first, then PPO.

        Args:
            before: rows of the evaluation before training.
            after: rows of the one after it.
            best: :func:`summary` of the best evaluation in between; None where there was none.

        Raises:
            Abandoned: a stop is wanted.
        """
        recipe = self._recipe
        as_trained = self.trained._replace(policy=False)
        others = [one for one in recipe.eval_temperatures if one != recipe.temperature]
        table = [summary(as_trained, before, before)]
        for temperature in others:
            variant = Variant(policy=False, temperature=temperature)
            table.append(summary(variant, self.rows(variant), before))
        for count in recipe.eval_best_of:
            variant = as_trained._replace(best_of=count)
            table.append(summary(variant, self.rows(variant), before))
        if best is not None:
            table.append(best)
        table.append(summary(self.trained, after, before))
        for temperature in others:
            variant = Variant(policy=True, temperature=temperature)
            table.append(summary(variant, self.rows(variant), before))
        return table


def summary(variant: Variant, rows: Sequence[Row], base: Sequence[Row]) -> Row:
    """Compute means over prompts, with their standard errors as ``…_se``.

    Args:
        variant: what was sampled.
        rows: one per prompt.
        base: the base's, for the same prompts; a win is a higher score than its, a tie half of one.
    """
    columns = {"score": "score", "mean_reward": "reward", "kl": "kl", "true_utility": "utility", "length": "length"}
    row: Row = {
        "name": variant.name,
        "policy": variant.policy,
        "temperature": variant.temperature,
        "best_of": variant.best_of,
        "questions": len(rows),
    }
    for name, key in columns.items():
        if key in rows[0]:
            row |= mean_and_error(name, [each[key] for each in rows])
    if variant.best_of > 1:
        row |= {"kl": math.log(variant.best_of) - (variant.best_of - 1) / variant.best_of, "kl_is_bound": True}
        del row["kl_se"]
    wins = [
        (one["score"] > other["score"]) + 0.5 * (one["score"] == other["score"])
        for one, other in zip(rows, base, strict=True)
    ]
    return row if rows is base else row | mean_and_error("win_rate", wins)


def held_out_objective(rows: Sequence[Row], kl_coef: float) -> float:
    """Compute PPO's objective on held-out prompts: mean score − ``kl_coef`` × mean KL."""
    return sum(row["score"] - kl_coef * row["kl"] for row in rows) / len(rows)


def mean_and_error(name: str, values: Sequence[float]) -> dict[str, float]:
    """Compute the mean and its standard error (0 for one value), as ``name`` and ``name_se``."""
    count = len(values)
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / max(1, count - 1)
    return {name: mean, f"{name}_se": math.sqrt(variance / count)}
