"""What the rows of a rollout or an evaluation come to."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .rewards import PREFIX
from .rollout import Rollout, sequence_sum
from .update import Reduce


def objective(
    rollout: Rollout, scores: Tensor, kl: Tensor, rows: Sequence[dict[str, Any]], coef: float, reduce: Reduce
) -> tuple[dict[str, float], int]:
    """What PPO optimises, by TRL's names: means over the responses of all ranks, and the number of these.

    Args:
        rollout: this rank's.
        scores: as PPO sees them, ``[B]``.
        kl: of each response, ``[B]``.
        rows: the responses as they are recorded; the demo's know their true utility.
        coef: the KL coefficient.
        reduce: sum over all ranks.
    """
    columns = {
        "objective/scores": rollout.scores,
        "objective/kl": kl,
        "objective/entropy": sequence_sum(-rollout.old.logprobs, rollout.mask),
        "objective/rlhf_reward": scores - coef * kl,
        "objective/non_score_reward": -coef * kl,
        "response_length": rollout.mask.sum(1),
        "val/num_eos_tokens": kl.new_tensor([float(answer.ended) for answer in rollout.answers]),
        **rollout.opinions,
    }
    if "utility" in rows[0]:
        columns["demo/true_utility"] = kl.new_tensor([row["utility"] for row in rows])
    *sums, count = reduce(torch.stack([*columns.values(), torch.ones_like(kl)]).sum(1)).tolist()
    totals = dict(zip(columns, sums, strict=True))
    means = {name: total / count for name, total in totals.items()}
    ended, tokens = totals["val/num_eos_tokens"], totals["response_length"]
    return means | {"val/num_eos_tokens": ended, "val/num_tokens": tokens}, round(count)


def figures(evaluation: dict[str, Any]) -> dict[str, float]:
    """Means over the rows of an evaluation, and their number."""
    rows: list[dict[str, Any]] = evaluation["rows"]
    names = {"mean_reward": "reward", "true_utility": "utility", "kl": "kl", "response_length": "length"}
    found = {name: sum(row[key] for row in rows) / len(rows) for name, key in names.items() if key in rows[0]}
    found |= {f"{PREFIX}{name}": sum(row["rewards"][name] for row in rows) / len(rows) for name in rows[0]["rewards"]}
    return found | {"questions": len(rows)}


def side_by_side(before: dict[str, Any], after: dict[str, Any], count: int = 3) -> list[dict[str, Any]]:
    """The first questions whose answer changed (then others), answered before and after."""
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
