"""Values of the demo's own recipe, as a form takes them: its data set, and settings for a tiny model on a CPU."""

import functools
from collections.abc import Mapping

from stackllama_engine.contract.base import DEMO_RECIPE
from stackllama_engine.contract.recipe import PipelineRecipe
from stackllama_engine.contract.recipe_io import read_recipe
from stackllama_engine.contract.stages import TRAINING_STAGES, Stage
from stackllama_engine.launch.sections import PLACEHOLDER, stage_recipe

from .form import Form
from .input_check import MODEL


@functools.cache
def demo_values(stage: Stage) -> Mapping[str, str]:
    """Return form key → text, without model and what other runs give; empty for a stage that trains nothing.

    Raises:
        UsageError: the installation lacks the recipe.
    """
    recipe = read_recipe(Stage.PIPELINE, DEMO_RECIPE).recipe
    assert isinstance(recipe, PipelineRecipe)
    form = Form(stage)
    if stage is Stage.PIPELINE:
        form.load(recipe)
    elif stage in TRAINING_STAGES:
        form.load(stage_recipe(recipe, stage))
    return {key: text for key, text in form.differences().items() if key != MODEL and text != PLACEHOLDER}
