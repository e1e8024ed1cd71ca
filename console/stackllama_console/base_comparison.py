"""Comparison of a PPO run with its base, as a table of what the run left in ``result.json``."""

from collections.abc import Mapping, Sequence
from typing import Any

from stackllama_engine.contract.metrics import short_of
from stackllama_engine.contract.stages import Stage

from .readings import is_metric, mappings

Row = Mapping[str, Any]

_COLUMNS = (("score", 2), ("kl", 2), ("true_utility", 3), ("win_rate", 2))
"""Metric → decimal places."""
_NAME, _CELL = 24, 13


def comparison_lines(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table, at most 78 columns wide; none where the run compared nothing.

    Args:
        result: of a PPO run. Its rows are from the engine's ``train/ppo/evaluation.py``.
    """
    rows: Sequence[Row] = mappings(result.get("comparison"))
    if not rows:
        return []
    columns = [column for column in _COLUMNS if any(column[0] in row for row in rows)]
    head = f"{rows[0].get('questions', '?')} held-out prompts".ljust(_NAME)
    lines = [head + "".join(f"{short_of(Stage.PPO, key):>{_CELL}}" for key, _ in columns)]
    for row in rows:
        cells = "".join(f"{_cell(row, key, digits):>{_CELL}}" for key, digits in columns)
        lines.append(f"{str(row.get('name', '?'))[:_NAME]:{_NAME}}{cells}".rstrip())
    return [
        *lines,
        "score: reward less the penalty of a missing end; ±: standard error",
        "wins: share of prompts with a better score than the base at its own temperature",
    ]


def _cell(row: Row, key: str, digits: int) -> str:
    value, error = row.get(key), row.get(f"{key}_se")
    if value is None or not is_metric(value):
        return ""
    bound = "≤ " if key == "kl" and row.get("kl_is_bound") else ""
    spread = f" ±{error:.{digits}f}" if error is not None and is_metric(error) else ""
    return f"{bound}{round(value, digits) + 0.0:.{digits}f}{spread}"  # no −0.00
