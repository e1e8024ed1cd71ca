"""``runs tag``, ``runs note``, ``runs rename``: what a person says of a run, kept beside it."""

import argparse

import msgspec

from stackllama_engine.contract.errors import ExitCode
from stackllama_engine.contract.labels import Labels, change_tags, read_labels, set_note, set_title
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.launch.ownership import check_run

from .output import say, show_json
from .runs import find


def tag(arguments: argparse.Namespace) -> int:
    """Run ``runs tag``: add and remove tags; without any, say which there are."""
    run = find(Home(arguments.home), arguments.run)
    if not arguments.tags and not arguments.remove:
        return _show(arguments, run, read_labels(run))
    check_run(run)
    return _show(arguments, run, change_tags(run, arguments.tags, arguments.remove))


def note(arguments: argparse.Namespace) -> int:
    """Run ``runs note``."""
    run = find(Home(arguments.home), arguments.run)
    check_run(run)
    return _show(arguments, run, set_note(run, arguments.text))


def rename(arguments: argparse.Namespace) -> int:
    """Run ``runs rename``: give it a title; its id stays."""
    run = find(Home(arguments.home), arguments.run)
    check_run(run)
    return _show(arguments, run, set_title(run, arguments.title))


def _show(arguments: argparse.Namespace, run: RunDir, labels: Labels) -> int:
    if arguments.json:
        show_json({"run": run.id, **as_facts(labels)})
    else:
        say(f"{run.id}: title: {labels.title or 'none'}; tags: {' '.join(labels.tags) or 'none'}")
        if labels.note:
            say(f"  {labels.note}")
    return ExitCode.DONE


def as_facts(labels: Labels) -> dict[str, object]:
    """Return labels as every JSON document has them."""
    return {field.name: getattr(labels, field.name) for field in msgspec.structs.fields(Labels)}
