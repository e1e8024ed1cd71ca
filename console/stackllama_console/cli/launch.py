"""``launch``, ``pipeline``, ``merge``: start a run in the background, and follow it where asked."""

import argparse
import os
from collections.abc import Sequence

import msgspec

from stackllama_engine.contract.errors import ExitCode, UsageError
from stackllama_engine.contract.recipe_io import Reading, read_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.run_lock import BY_FILE, is_by_file
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher
from stackllama_engine.launch.data_check import data_notices
from stackllama_engine.launch.on_end import VARIABLE
from stackllama_engine.launch.uninterrupted import uninterrupted

from ..run_facts import facts
from .finish import finish
from .output import PROGRAM, say, say_notes, show, show_json
from .recipe_args import split_words


def launch(arguments: argparse.Namespace) -> int:
    """Run ``launch STAGE``."""
    stage = Stage(arguments.stage)
    file, overrides = split_words(arguments.words)
    reading = read_recipe(stage, file, overrides)
    _check_slurm(arguments)
    say_notes(reading.notes)
    return (dry_run if arguments.dry_run else start)(arguments, reading)


def pipeline(arguments: argparse.Namespace) -> int:
    """Run ``pipeline``: ``launch pipeline`` under its own name."""
    arguments.stage = Stage.PIPELINE
    return launch(arguments)


def merge(arguments: argparse.Namespace) -> int:
    """Run ``merge RUN``: ``launch merge adapter_path=RUN``, followed unless ``--no-follow`` says otherwise."""
    file, overrides = split_words(arguments.words)
    if file:
        raise UsageError(f"`{file}`: merge takes one run and key=value words, no recipe file.")
    adapter = yaml_string(arguments.run)
    reading = read_recipe(Stage.MERGE, None, [f"adapter_path={adapter}", *overrides])
    say_notes(reading.notes)
    return start(arguments, reading)


def _check_slurm(arguments: argparse.Namespace) -> None:
    if not getattr(arguments, "slurm", False):
        if getattr(arguments, "sbatch_option", None):
            raise UsageError("--sbatch-option needs --slurm; add it.")
        return
    if arguments.after is not None:
        raise UsageError(
            "--after and --slurm exclude each other, as Slurm has a queue. Use --sbatch-option dependency=afterany:JOB."
        )
    for given, option in ((arguments.canary is not None, "--canary"), (arguments.dry_run, "--dry-run")):
        if given:
            raise UsageError(f"{option} and --slurm exclude each other: a job plans its launch where it starts.")


def yaml_string(text: str) -> str:
    """Quote a string so that YAML reads back exactly this string."""
    import json

    return json.dumps(text)


def start(arguments: argparse.Namespace, reading: Reading) -> int:
    """Launch, print the run id at once, and follow where asked."""
    home = Home(arguments.home)
    set_on_end(arguments)
    if getattr(arguments, "slurm", False):
        from stackllama_engine.launch import slurm

        warnings = launcher.prepare(home, reading.recipe, arguments.name, arguments.allow).warnings
        notices = (*data_notices(reading.recipe), *warnings)  # before anything is created
        with uninterrupted():
            run = slurm.submit(home, reading.recipe, arguments.name, arguments.sbatch_option, arguments.allow)
    else:
        plan = _plan(arguments, home, reading)
        notices = plan.notices
        run = launcher.launch(plan)
    if not arguments.json:
        show(run.id)
        flush()
        for notice in notices:
            say(f"note: {notice}")
        if is_by_file(run.path):
            say(f"note: {BY_FILE}")
    return follow_or_leave(arguments, home, run, [*reading.notes, *notices])


def set_on_end(arguments: argparse.Namespace) -> None:
    """Hand ``--on-end`` to the supervisor that this process starts."""
    if command := getattr(arguments, "on_end", None):
        os.environ[VARIABLE] = command


def follow_or_leave(arguments: argparse.Namespace, home: Home, run: RunDir, notes: Sequence[str] = ()) -> int:
    """Follow the run and return its exit code, or say how to; with ``--json`` one document, when it is known."""
    if not arguments.follow:
        if arguments.json:
            show_json(facts(run, run.read_state()) | {"notes": notes})
        state = run.read_state()
        doing = f"is {state.waiting}, in the background" if state.waiting else "is running in the background"
        say(f"{run.id} {doing}; this terminal can be closed.")
        say(f"  watch: {PROGRAM} runs watch {run.id}")
        say(f"  stop:  {PROGRAM} runs stop {run.id}")
        return ExitCode.DONE
    from .follow import follow

    return finish(home, run, follow(home, run, plain=arguments.plain), as_json=arguments.json, notes=notes)


def dry_run(arguments: argparse.Namespace, reading: Reading) -> int:
    """Print the command that would run, and the recipe with every default written out. Nothing is created.

    As text it is a recipe file, the command a comment on its first line.
    """
    plan = _plan(arguments, Home(arguments.home), reading, ask_hub=False)
    if arguments.json:
        show_json(
            {
                "argv": plan.command.argv,
                "environment": plan.command.environment,
                "recipe": msgspec.to_builtins(plan.recipe),
                "notes": [*reading.notes, *plan.notices],
            }
        )
        return ExitCode.DONE
    show(f"# {plan.command.in_shell()}")
    for notice in plan.notices:
        show(f"# note: {notice}")
    show(plan.recipe_yaml.rstrip("\n"))
    return ExitCode.DONE


def _plan(arguments: argparse.Namespace, home: Home, reading: Reading, *, ask_hub: bool = True) -> launcher.Plan:
    """Plan what these arguments launch; ``merge`` and ``demo`` have no ``--canary``, ``--after`` or ``--allow``."""
    canary, after, allow = (getattr(arguments, name, None) for name in ("canary", "after", "allow"))
    return launcher.plan(
        home, reading.recipe, arguments.name, canary=canary, after=after, allow=allow or (), ask_hub=ask_hub
    )


def flush() -> None:
    """Hand stdout over now: whoever reads the run id must not wait for the run."""
    import sys

    sys.stdout.flush()


def seed_overrides(seed: int) -> list[str]:
    """Return overrides that set the seed of every stage of a pipeline, whatever its file says."""
    return [f"seed={seed}", *(f"{stage}.seed={seed}" for stage in ("sft", "reward", "ppo", "merge"))]
