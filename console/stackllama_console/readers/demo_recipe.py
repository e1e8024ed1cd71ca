"""Values of the demo's own recipe, as a form takes them: its data set, and settings for a tiny model on a CPU."""

import functools
from collections.abc import Mapping

import msgspec

from stackllama_engine.contract.base import DEMO_RECIPE
from stackllama_engine.contract.recipe import PipelineRecipe
from stackllama_engine.contract.recipe_io import build_recipe, read_recipe
from stackllama_engine.contract.stages import PIPELINE_STAGES, Stage
from stackllama_engine.launch.sections import PLACEHOLDER, stage_recipe

from .form import Form
from .input_check import MODEL

_OF_PAIRS = (
    MODEL,
    "dataset_name",
    "dtype",
    "base_precision",
    "use_cpu",
    "lora_target_modules",
    "save_steps",
    "max_train_samples",
    "max_eval_samples",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "max_length",
    "learning_rate",
)


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
    elif stage is Stage.PREFERENCE:  # no stage of the demo; the reward model's data and limits suit its pairs as well
        reward = msgspec.to_builtins(stage_recipe(recipe, Stage.REWARD))
        form.load(build_recipe(stage, {key: reward[key] for key in _OF_PAIRS}))
    elif stage in PIPELINE_STAGES:
        form.load(stage_recipe(recipe, stage))
    return {key: text for key, text in form.differences().items() if key != MODEL and text != PLACEHOLDER}
