"""How the held-out prompts of a PPO run were answered: what stands beside every figure of an evaluation."""

from typing import Any, cast

from stackllama_engine.contract.people_files import MIB, read_text
from stackllama_engine.contract.run_dir import RunDir


def conditions(result: dict[str, Any]) -> str:
    """``T = 1, 1 sample per prompt, 128 prompts``; what ``result.json`` does not say is left out.

    Args:
        result: of a PPO run, with its ``temperature``: that of the recipe in runs that do not record it.
    """
    after = result.get("after")
    counted: dict[str, Any] = cast("dict[str, Any]", after) if isinstance(after, dict) else {}
    temperature, prompts = result.get("temperature"), counted.get("questions")
    parts = [f"T = {temperature:g}"] if isinstance(temperature, int | float) else []
    parts.append("1 sample per prompt")
    return ", ".join([*parts, f"{prompts:,} prompts"] if isinstance(prompts, int) else parts)


def conditions_of(run: RunDir) -> str:
    """The same of a PPO run as its files say now, which may still be running.

    Raises:
        UsageError: ``result.json`` is damaged.
    """
    return conditions({"temperature": temperature_of(run)} | run.read_json("result.json"))


def temperature_of(run: RunDir) -> float | None:
    """What the run samples at; None where its recipe cannot be read. Keys of older recipes do not matter."""
    from stackllama_engine.contract.people_yaml import load_yaml  # not needed to list runs

    try:
        values: Any = load_yaml(read_text(run.recipe_file, MIB))
    except (OSError, ValueError):  # `runs show` says what is wrong with it
        return None
    keys: dict[str, Any] = cast("dict[str, Any]", values) if isinstance(values, dict) else {}
    given = keys.get("temperature")
    return float(given) if isinstance(given, int | float) else None
