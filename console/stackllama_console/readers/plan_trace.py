"""The memory formula beside a trace of the real model's classes, which takes seconds."""

import msgspec
from msgspec import Struct

from stackllama_engine.budget.estimate import EstimatedRecipe, estimate
from stackllama_engine.budget.model_files import read_architecture
from stackllama_engine.budget.trace.request import Trace
from stackllama_engine.budget.tracing import trace
from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.recipe import MergeRecipe, PPORecipe
from stackllama_engine.contract.run_dir import Home

from .memory_plan import model_files, reward_files


class Compared(Struct, frozen=True, kw_only=True):
    """Allocated bytes on one GPU, by both."""

    formula: int | None
    """None: the formula does not know this model."""
    trace: Trace

    @property
    def difference(self) -> float | None:
        """(formula − trace) / trace: negative where the formula is the more optimistic."""
        return None if self.formula is None else self.formula / self.trace.allocated - 1


def compare(home: Home, recipe: EstimatedRecipe) -> Compared:
    """Trace a recipe, and estimate it for the same place: one GPU, whatever this machine has.

    Raises:
        UsageError: nothing to trace, a model that cannot be, or it took too long.
    """
    if isinstance(recipe, MergeRecipe):
        raise UsageError("`--trace` follows the steps of a stage that trains; a merge has none.")
    if isinstance(recipe, PPORecipe):  # what is traced is this engine's own sampling
        recipe = msgspec.structs.replace(recipe, use_vllm=False)
    model = model_files(home, recipe)
    reward_path = reward_files(home, recipe)[0] if isinstance(recipe, PPORecipe) else None
    reward = read_architecture(reward_path) if reward_path else None
    estimated = estimate(recipe, read_architecture(model), on_gpu=True, reward=reward)
    return Compared(
        formula=None if estimated.unknown else estimated.allocated, trace=trace(recipe, model, reward_model=reward_path)
    )
