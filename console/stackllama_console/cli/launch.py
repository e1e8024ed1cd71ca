"""``launch``, ``pipeline``, ``merge``: start a run in the background, and follow it where asked."""

import argparse
import shlex
from collections.abc import Sequence

import msgspec

from stackllama_engine.contract.errors import ExitCode, UsageError
from stackllama_engine.contract.recipe_io import Reading, read_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.run_lock import BY_FILE, is_by_file
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher
from stackllama_engine.launch.data_check import data_notices
from stackllama_engine.launch.uninterrupted import uninterrupted

from ..run_facts import facts
from .finish import finish
from .output import PROGRAM, say, say_notes, show, show_json
from .recipe_args import split_words


def launch(arguments: argparse.Namespace) -> int:
    """``launch STAGE``."""
    stage = Stage(arguments.stage)
    file, overrides = split_words(arguments.words)
    reading = read_recipe(stage, file, overrides)
    _check_slurm(arguments)
    say_notes(reading.notes)
    return (dry_run if arguments.dry_run else start)(arguments, stage, reading)


def pipeline(arguments: argparse.Namespace) -> int:
    """``pipeline``: ``launch pipeline`` under its own name."""
    arguments.stage = Stage.PIPELINE
    return launch(arguments)


def merge(arguments: argparse.Namespace) -> int:
    """``merge RUN``: ``launch merge adapter_path=RUN``, followed unless told not to."""
    file, overrides = split_words(arguments.words)
    if file:
        raise UsageError(f"`{file}`: merge takes one run and key=value words, no recipe file.")
    adapter = yaml_string(arguments.run)
    reading = read_recipe(Stage.MERGE, None, [f"adapter_path={adapter}", *overrides])
    say_notes(reading.notes)
    return start(arguments, Stage.MERGE, reading)


def _check_slurm(arguments: argparse.Namespace) -> None:
    if not getattr(arguments, "slurm", False):
        if getattr(arguments, "sbatch_option", None):
            raise UsageError("--sbatch-option belongs to --slurm; add it.")
        return
    for given, option in ((arguments.canary is not None, "--canary"), (arguments.dry_run, "--dry-run")):
        if given:
            raise UsageError(f"{option} and --slurm exclude each other: what a job starts is worked out where it runs.")


def yaml_string(text: str) -> str:
    """A string that YAML reads back as exactly this string."""
    import json

    return json.dumps(text)


def start(arguments: argparse.Namespace, stage: Stage, reading: Reading) -> int:
    """Launch, print the run id at once, and follow where asked."""
    recipe = reading.recipe
    home = Home(arguments.home)
    notices = data_notices(recipe)  # before the launch: what cannot be read is said without a run
    if getattr(arguments, "slurm", False):
        from stackllama_engine.launch import slurm

        with uninterrupted():
            run = slurm.submit(home, stage, recipe, arguments.name, arguments.sbatch_option)
    else:
        run = launcher.launch(home, stage, recipe, arguments.name, canary=getattr(arguments, "canary", None))
    if not arguments.json:
        show(run.id)
        flush()
        for notice in notices:
            say(f"note: {notice}")
        if is_by_file(run.path):
            say(f"note: {BY_FILE}")
    return follow_or_leave(arguments, home, run, [*reading.notes, *notices])


def follow_or_leave(arguments: argparse.Namespace, home: Home, run: RunDir, notes: Sequence[str] = ()) -> int:
    """Follow the run and return its exit code, or say how to; with ``--json`` one document, when it is known."""
    if not arguments.follow:
        if arguments.json:
            show_json(facts(run, run.read_state()) | {"notes": notes})
        say(f"{run.id} runs in the background; this terminal may close.")
        say(f"  watch it: {PROGRAM} runs watch {run.id}")
        say(f"  stop it:  {PROGRAM} runs stop {run.id}")
        return ExitCode.DONE
    from .follow import follow

    return finish(home, run, follow(home, run, plain=arguments.plain), as_json=arguments.json, notes=notes)


def dry_run(arguments: argparse.Namespace, stage: Stage, reading: Reading) -> int:
    """The command that would run, and the recipe with every default written out. Nothing is created.

    As text it is a recipe file, the command a comment on its first line.
    """
    canary: bool | None = getattr(arguments, "canary", None)
    plan = launcher.plan(Home(arguments.home), stage, reading.recipe, arguments.name, canary=canary)
    if arguments.json:
        show_json(
            {
                "argv": plan.argv,
                "environment": plan.environment,
                "recipe": msgspec.to_builtins(plan.recipe),
                "notes": [*reading.notes, *plan.notices],
            }
        )
        return ExitCode.DONE
    show(f"# {_command(plan.argv, plan.environment)}")
    for notice in plan.notices:
        show(f"# note: {notice}")
    show(plan.recipe_yaml.rstrip("\n"))
    return ExitCode.DONE


def _command(argv: list[str], environment: dict[str, str]) -> str:
    assignments = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    return " ".join([*assignments, shlex.join(argv)])


def flush() -> None:
    """Hand stdout over now: whoever reads the run id must not wait for the run."""
    import sys

    sys.stdout.flush()


def seed_overrides(seed: int) -> list[str]:
    """A seed for every stage of a pipeline, over whatever its file says."""
    return [f"seed={seed}", *(f"{stage}.seed={seed}" for stage in ("sft", "reward", "ppo", "merge"))]
