"""Aggregate metrics of a rollout or an evaluation."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...contract.metrics import ABSTAINED
from ...contract.recipe import PPORecipe
from . import losses
from .rewards import PREFIX, Scores, functions_of
from .rollout import Rollout, sequence_sum
from .thoughts import CUT
from .update import Reduce

_OPENED = "thoughts opened"
"""Not a metric, but whether there is one: summed over all ranks with the others."""


def objective(
    rollout: Rollout,
    scores: Scores,
    penalty: Tensor,
    rows: Sequence[dict[str, Any]],
    recipe: PPORecipe,
    coef: float,
    reduce: Reduce,
) -> tuple[dict[str, float], int]:
    """Compute PPO's objective and its parts under TRL's names: means over the responses of all ranks, and their number.

    ``objective/rlhf_reward`` is the sum of ``objective/scores`` (``objective/scaled_scores`` where the recipe scales
    them), ``objective/penalties`` and ``objective/non_score_reward``. ``objective/kl`` is k1's estimate whatever the
    penalty's estimator is, as in an evaluation; another one's has its own name.

    Args:
        rollout: this rank's.
        scores: of this rank.
        penalty: KL of each response by the penalty's estimator, ``[B]``.
        rows: the responses as they are recorded; the demo's know their true utility.
        recipe: the PPO recipe.
        coef: the KL coefficient.
        reduce: sum over all ranks.
    """
    columns = {"objective/scores": scores.raw}
    if recipe.normalize_reward or recipe.cliprange_reward is not None:
        columns["objective/scaled_scores"] = scores.scaled
    columns |= {
        "objective/penalties": scores.final - scores.scaled,
        "objective/non_score_reward": -coef * penalty,
        "objective/rlhf_reward": scores.final - coef * penalty,
        "objective/kl": response_kl(rollout),
        "objective/entropy": sequence_sum(-rollout.old.logprobs, rollout.mask),
        "response_length": rollout.mask.sum(1),
        "val/num_prompt_tokens": rollout.attention_mask.sum(1) - rollout.mask.sum(1),
        "val/num_eos_tokens": penalty.new_tensor([float(text.ended) for text in rollout.texts]),
        **{name: values.nan_to_num(0) for name, values in rollout.components.items()},
    }
    functions = functions_of(rollout.components)
    columns |= {f"{name}{ABSTAINED}": rollout.components[name].isnan().float() for name in functions}
    if recipe.penalty_estimator != "k1":
        columns[f"objective/kl_{recipe.penalty_estimator}"] = penalty
    if rollout.thoughts:
        opened, cut_off = penalty.new_tensor(rollout.thoughts).unbind(1)  # [B] each
        columns |= {_OPENED: opened, CUT: cut_off}
    if "utility" in rows[0]:
        columns["demo/true_utility"] = penalty.new_tensor([row["utility"] for row in rows])
    *sums, count = reduce(torch.stack([*columns.values(), torch.ones_like(penalty)]).sum(1)).tolist()
    totals = dict(zip(columns, sums, strict=True))
    means = {name: total / count for name, total in totals.items()}
    if not means.pop(_OPENED, 0.0):  # of a model that does not think there is nothing to report
        means.pop(CUT, None)
    for name in functions:  # a function's mean is over the responses that it scored
        scored = count - totals[f"{name}{ABSTAINED}"]
        means[name] = totals[name] / scored if scored else math.nan
    counts = {name: totals[name] for name in ("val/num_eos_tokens", "val/num_prompt_tokens")}
    return means | counts | {"val/num_tokens": totals["response_length"]}, round(count)


def response_kl(rollout: Rollout) -> Tensor:
    """Estimate KL(policy ‖ reference) of each response by k1, ``[B]``."""
    return sequence_sum(losses.kl_per_token(rollout.old.logprobs, rollout.ref_logprobs), rollout.mask)


def throughput(metrics: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Compute tokens of all ranks per second of a step, each counted once however many epochs read it.

    ``tokens_per_second`` counts prompts and responses, as SFT counts its texts.

    Args:
        metrics: of :func:`objective`.
        seconds: that the step took.
    """
    responses = metrics["val/num_tokens"]
    return {
        "tokens_per_second": (metrics["val/num_prompt_tokens"] + responses) / seconds,
        "response_tokens_per_second": responses / seconds,
    }


def evaluation_metrics(evaluation: dict[str, Any]) -> dict[str, float]:
    """Compute means over the rows of an evaluation, and their number."""
    rows: list[dict[str, Any]] = evaluation["rows"]
    names = {"mean_reward": "reward", "true_utility": "utility", "kl": "kl", "response_length": "length"}
    means = {name: sum(row[key] for row in rows) / len(rows) for name, key in names.items() if key in rows[0]}
    for name in {name: None for row in rows for name in row["rewards"]}:
        values = [row["rewards"][name] for row in rows if name in row["rewards"]]  # a function may abstain
        means[f"{PREFIX}{name}"] = sum(values) / len(values)
    return means | {"questions": len(rows)}


def side_by_side(before: dict[str, Any], after: dict[str, Any], count: int = 3) -> list[dict[str, Any]]:
    """Pair responses before and after training, those that changed first."""
    both = list(zip(before["rows"], after["rows"], strict=True))
    both.sort(key=lambda pair: pair[0]["response"] == pair[1]["response"])  # stable: changed ones first
    return [
        {"question": old["question"]}
        | {
            f"{name}_{when}" if name != "response" else when: row[name]
            for when, row in (("before", old), ("after", new))
            for name in ("response", "reward", "utility")
            if name in row
        }
        for old, new in both[:count]
    ]
