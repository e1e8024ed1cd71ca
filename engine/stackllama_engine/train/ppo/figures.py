"""What an evaluation's rows come to."""

from typing import Any

from .rewards import PREFIX


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
