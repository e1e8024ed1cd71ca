"""``recipe convert``: another trainer's recipe as one of this engine."""

import argparse
from pathlib import Path

from stackllama_engine.contract.errors import ExitCode, UsageError
from stackllama_engine.contract.recipe_convert import Converted, convert_recipe
from stackllama_engine.contract.stages import Stage

from ..sanitise import one_line
from .output import PROGRAM, say, show, show_json


def convert(arguments: argparse.Namespace) -> int:
    """Run ``recipe convert FILE``: the recipe to stdout or a file, what was left out to stderr."""
    made = convert_recipe(arguments.file, Stage(arguments.stage) if arguments.stage else None)
    if arguments.out:
        _write(arguments.out, made.text, replace=arguments.force)
    if arguments.json:
        show_json(
            {
                "source": made.source,
                "stage": made.stage,
                "recipe": made.values,
                "left_out": made.left_out,
                "defaults": made.defaults,
                "out": str(arguments.out.absolute()) if arguments.out else None,
            }
        )
    elif not arguments.out:
        show(made.text.rstrip("\n"))
    _narrate(arguments, made)
    return ExitCode.DONE


def _write(file: Path, text: str, *, replace: bool) -> None:
    """Write a file; an existing one only where that was asked for.

    Raises:
        UsageError: it exists already, or cannot be written.
    """
    try:
        if replace and file.exists():
            say(f"Replacing {file}.")
        with file.open("w" if replace else "x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise UsageError(f"{file} exists already; choose another name, or replace it with --force.") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}.") from None


def _narrate(arguments: argparse.Namespace, made: Converted) -> None:
    say(f"A recipe for {made.stage}, from {made.source}'s {one_line(str(arguments.file))}.")
    if made.left_out:
        say("Left out or converted:")
    for text in made.left_out:
        say(f"  {one_line(text)}")
    if made.defaults:
        say(f"With {made.source}'s own defaults, where this engine's differ: {', '.join(made.defaults)}")
    if arguments.out:
        say(f"  check: {PROGRAM} launch {made.stage} {arguments.out} --dry-run")
