"""``demo``: the whole recipe on the embedded model and data, followed to its end, and what changed."""

import argparse
from pathlib import Path

import stackllama_engine
from stackllama_engine.contract.errors import StackllamaError, UsageError
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher

from .finish import finish
from .launch import seed_overrides, split_words
from .output import PROGRAM, say

RECIPE = Path(stackllama_engine.__file__).parent / "demo_base" / "demo.yaml"


def demo(arguments: argparse.Namespace) -> int:
    """Run it; the exit code is the pipeline's."""
    from .follow import follow

    file, overrides = split_words(arguments.words)
    if file:
        raise UsageError(f"`{file}`: the demo has its own recipe; `{PROGRAM} pipeline {file}` runs yours.")
    if not RECIPE.is_file():
        raise StackllamaError(f"{RECIPE} is missing: this installation is not complete; install it again.")
    recipe = load_recipe(Stage.PIPELINE, RECIPE, [*seed_overrides(arguments.seed), *overrides])
    home = Home(arguments.home)
    run = launcher.launch(home, Stage.PIPELINE, recipe)
    say(f"The whole recipe on the embedded demo, seed {arguments.seed}: {run.id}")
    say("It runs in the background; Ctrl-C only stops looking.")
    say()
    return finish(home, run, follow(home, run, plain=arguments.plain), as_json=arguments.json)
