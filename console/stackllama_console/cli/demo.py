"""``demo``: the pipeline on the embedded model and data, followed to its end, and what changed."""

import argparse

from stackllama_engine.contract.base import DEMO_RECIPE
from stackllama_engine.contract.errors import StackllamaError, UsageError
from stackllama_engine.contract.recipe_io import read_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher
from stackllama_engine.launch.reconcile import reconcile

from .console import can_show, show_console
from .finish import finish
from .launch import seed_overrides
from .output import PROGRAM, say, say_notes
from .recipe_args import split_words
from .run_status import say_outcome


def demo(arguments: argparse.Namespace) -> int:
    """Run ``demo``; the exit code is the pipeline's."""
    from .follow import follow

    file, overrides = split_words(arguments.words)
    if file:
        raise UsageError(f"`{file}`: the demo has its own recipe; `{PROGRAM} pipeline {file}` runs yours.")
    if not DEMO_RECIPE.is_file():
        raise StackllamaError(f"{DEMO_RECIPE} is missing: the installation is incomplete; reinstall it.")
    reading = read_recipe(Stage.PIPELINE, DEMO_RECIPE, [*seed_overrides(arguments.seed), *overrides])
    say_notes(reading.notes)
    home = Home(arguments.home)
    run = launcher.launch(launcher.plan(home, reading.recipe))
    if not (arguments.plain or arguments.json) and can_show():
        return _in_console(arguments, home, run)
    say(f"Demo pipeline, seed {arguments.seed}: {run.id}")
    say("It runs in the background; Ctrl-C detaches without stopping it.")
    say()
    return finish(home, run, follow(home, run, plain=arguments.plain), as_json=arguments.json)


def _in_console(arguments: argparse.Namespace, home: Home, run: RunDir) -> int:
    """Open the console on the pipeline, and print the pipeline's outcome or state when the person leaves."""
    code = show_console(arguments, run.id)
    state = reconcile(run)
    if state.has_ended:
        say_outcome(run, state)
        return finish(home, run, state, as_json=False)
    say(f"{run.id} continues in the background.")
    say(f"  reopen: {PROGRAM} open {run.id}")
    say(f"  stop:   {PROGRAM} runs stop {run.id}")
    return code
