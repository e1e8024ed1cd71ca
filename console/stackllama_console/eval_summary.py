"""Sampling conditions of a PPO run's evaluation, shown beside its metrics."""

from typing import Any, cast

from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.contract.run_files import read_file

from .readings import is_metric, read_result

_MOST_RECIPE = 1 << 20  # bytes


def conditions(result: dict[str, Any]) -> str:
    """Return ``T = 1, 1 sample per prompt, 128 prompts``; what ``result.json`` does not say is left out.

    Args:
        result: of a PPO run, with its ``temperature``: that of the recipe in runs that do not record it.
    """
    after = result.get("after")
    counted: dict[str, Any] = cast("dict[str, Any]", after) if isinstance(after, dict) else {}
    temperature, prompts = result.get("temperature"), counted.get("questions")
    parts = [f"T = {temperature:g}"] if temperature is not None and is_metric(temperature) else []
    parts.append("1 sample per prompt")
    return ", ".join([*parts, f"{prompts:,} prompts"] if _is_count(prompts) else parts)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 53


def conditions_of(run: RunDir) -> str:
    """Return `conditions` of a PPO run, which may still be running; a damaged result is ignored."""
    return conditions({"temperature": temperature_of(run)} | read_result(run)[0])


def temperature_of(run: RunDir) -> float | None:
    """Return the sampling temperature; None where the recipe cannot be read. Keys of older recipes do not matter."""
    from stackllama_engine.contract.user_yaml import load_yaml  # not needed to list runs

    try:
        values: Any = load_yaml(read_file(run.recipe_file, _MOST_RECIPE).decode())
    except (OSError, ValueError):  # `runs show` says what is wrong with it
        return None
    keys: dict[str, Any] = cast("dict[str, Any]", values) if isinstance(values, dict) else {}
    temperature = keys.get("temperature")
    return float(temperature) if is_metric(temperature) and temperature is not None else None
