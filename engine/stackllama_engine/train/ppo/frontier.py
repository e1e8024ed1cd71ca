"""The frontier of reward and KL over a run's evaluations, collected for :mod:`stackllama_engine.health.frontier`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from ...contract.checkpoints import sealed, step_of
from ...contract.errors import StackllamaError
from ...contract.events import EventReader
from ...contract.metrics import SELECTION
from ...contract.recipe import PPORecipe
from ...contract.recipe_io import load_recipe
from ...contract.resuming import RECIPE_FILE
from ...contract.run_dir import RunDir
from ...contract.stages import Stage
from ...health.frontier import Choice, Point, choose
from .evaluation import Row, mean_and_error


def watching_function(recipe: PPORecipe) -> str | None:
    """Return the name of the reward function that only watches, because its weight is 0; None: there is none."""
    return next((function.name for function in recipe.functions if not function.weight), None)


def selection_metrics(recipe: PPORecipe, rows: Sequence[Row]) -> dict[str, float]:
    """Compute what decides which evaluation is the best, with its standard error.

    Args:
        recipe: the PPO recipe.
        rows: of one evaluation. Responses that the function abstains from are left out.
    """
    name = watching_function(recipe)
    if name is None:
        return mean_and_error(SELECTION, [row["score"] - recipe.kl_coef * row["kl"] for row in rows])
    values = [row["rewards"][name] for row in rows if name in row["rewards"]]
    return mean_and_error(SELECTION, values) if values else {}


def choose_checkpoint(recipe: PPORecipe, run: RunDir) -> Choice | None:
    """Choose among the evaluations in the run's events; None where there are fewer than two after step 0.

    An evaluation that a later attempt made again counts as that one did. Those of before a change of what is measured
    do not count.
    """
    points: dict[int, Point] = {}
    before: list[Any] | None = None
    for folder in run.attempt_dirs():
        measured = _measured(folder)
        if measured is not None:
            if before is not None and measured != before:
                points.clear()
            before = measured
        points |= {point.step: point for point in _points(folder)}
    name = watching_function(recipe)
    kept = {step_of(path) for path in sealed(run.checkpoints)}
    return choose(f"`{name}`" if name else f"score − {recipe.kl_coef:g} × KL", list(points.values()), kept)


def _measured(attempt: Path) -> list[Any] | None:
    """Return what an attempt's evaluations depend on besides the policy; None: its recipe cannot be read."""
    try:
        recipe = load_recipe(Stage.PPO, attempt / RECIPE_FILE)
    except (StackllamaError, OSError):
        return None
    return [getattr(recipe, key) for key in _MEASURED]


def _points(attempt: Path) -> list[Point]:
    """Return an attempt's evaluations after step 0."""
    points: list[Point] = []
    for event in EventReader(attempt / "events.jsonl").read_what_can_be():
        if event.kind == "metrics" and event.step and event.metrics.get(SELECTION) is not None:
            values = {field: event.metrics.get(name) for field, name in _FIELDS.items()}
            if None not in values.values():
                points.append(msgspec.convert({"step": event.step} | values, Point))
    return points


_MEASURED = ("max_eval_samples", "reward_funcs", "reward_weights", "kl_coef")
"""Keys of the recipe that evaluations of different values cannot be compared by."""
_FIELDS = {"reward": "eval/mean_reward", "kl": "eval/kl", "selection": SELECTION, "selection_se": f"{SELECTION}_se"}


def facts(choice: Choice, run: RunDir) -> dict[str, Any]:
    """Return the choice as facts of ``result.json``: ``best_checkpoint`` in words, and the ``frontier``."""
    return {"best_checkpoint": advice(choice, run), "frontier": msgspec.to_builtins(choice.points)}


def advice(choice: Choice, run: RunDir) -> str:
    """Return the choice in a sentence, with the way to its checkpoint."""
    if not choice.is_worse_at_the_end:
        return choice.text
    if any(step_of(path) == choice.step for path in sealed(run.checkpoints)):
        return f"{choice.text}; checkpoint-{choice.step} holds it"
    return (
        f"{choice.text}; it has no checkpoint: set `save_steps` to `eval_steps` and `metric_for_best_model={SELECTION}`"
    )
