"""The frontier of reward and KL over a run's evaluations, collected for :mod:`stackllama_engine.health.frontier`."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec

from ...contract.checkpoints import sealed, step_of
from ...contract.events import EventReader
from ...contract.metrics import SELECTION
from ...contract.recipe import PPORecipe
from ...contract.run_dir import RunDir
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

    An evaluation that a later attempt made again counts as that one did.
    """
    points: dict[int, Point] = {}
    for event in chain.from_iterable(EventReader(file).read_what_can_be() for file in run.events_files()):
        metrics = event.metrics
        if event.kind == "metrics" and event.step and metrics.get(SELECTION) is not None:
            values = {field: metrics.get(name) for field, name in _FIELDS.items()}
            if None not in values.values():
                points[event.step] = msgspec.convert({"step": event.step} | values, Point)
    name = watching_function(recipe)
    return choose(f"`{name}`" if name else f"score − {recipe.kl_coef:g} × KL", list(points.values()))


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
