"""``runs fork``: a new run from a checkpoint of another one."""

import argparse

from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.launch.fork import launch_fork, plan_fork

from .launch import flush, follow_or_leave, set_on_end
from .output import say, say_notes, show
from .recipe_args import split_words
from .runs import find


def fork(arguments: argparse.Namespace) -> int:
    """Run ``runs fork RUN [key=value …]``: plan, launch, and follow where asked."""
    home = Home(arguments.home)
    source = find(home, arguments.run)
    file, overrides = split_words(arguments.words)
    if file:
        raise UsageError(f"`{file}`: a fork has the recipe of `{source.id}`; give key=value words alone.")
    set_on_end(arguments)
    planned = plan_fork(home, source, arguments.at, overrides, arguments.name, allow=arguments.allow)
    notes = [*planned.reading.notes, *planned.plan.notices]
    say_notes(planned.reading.notes)
    run = launch_fork(planned)
    if not arguments.json:
        show(run.id)
        flush()
        origin = planned.origin
        for notice in (f"{run.id} continues from step {origin.step:,} of {origin.run}", *planned.plan.notices):
            say(f"note: {notice}")
    return follow_or_leave(arguments, home, run, notes)
