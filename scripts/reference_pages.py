"""The site's reference, as Markdown: recipe keys, commands and metrics, read off the code that defines them.

    python scripts/reference_pages.py recipe | commands | metrics

``docs/conf.py`` puts it where a page says ``<!-- reference: NAME -->``, each time the site is built.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from msgspec import UNSET, json, to_builtins

from stackllama_console.cli.parser import Parser, build_parser
from stackllama_console.readers.form_fields import FormField, fields_of
from stackllama_engine.contract.metrics import Metric, metrics_of
from stackllama_engine.contract.recipe import RECIPES, WIRED
from stackllama_engine.contract.stages import Stage

_STAGES = {
    Stage.SFT: "SFT",
    Stage.REWARD: "Reward model",
    Stage.PREFERENCE: "Preference",
    Stage.PPO: "PPO",
    Stage.MERGE: "Merge",
}
_CODE = re.compile(r"(`[^`]*`)")
_OPTION = re.compile(r"(?<![\w`-])(--[a-z][a-z-]*)")
_URL = re.compile(r"(https?://[^\s),;]*[^\s),;.:])|arXiv:(\d{4}\.\d{5}|\d{4}\.\d{4})")


def recipe() -> str:
    """Every key of every stage's recipe: type, bounds, default, help."""
    return "\n".join(line for stage, title in _STAGES.items() for line in _recipe_of(stage, title))


def commands() -> str:
    """Every command with its arguments and options."""
    return "\n".join(_command(build_parser(), level=1))


def metrics() -> str:
    """Every metric of every stage: name, label, unit, which way is better, definition."""
    return "\n".join(line for stage, title in _STAGES.items() for line in _metrics_of(stage, title))


PAGES: dict[str, Callable[[], str]] = {"recipe": recipe, "commands": commands, "metrics": metrics}


def _recipe_of(stage: Stage, title: str) -> Iterator[str]:
    yield f"## {title}\n"
    yield f"{markdown(_first_paragraph(RECIPES[stage]))}\n"
    if wired := [key for key in WIRED[stage] if key in fields_of(stage)]:
        yield f"A pipeline fills in {' and '.join(f'`{key}`' for key in wired)} from the stage before.\n"
    for section, fields in groupby(fields_of(stage).values(), key=lambda field: field.section):
        yield f"### {section}{'' if section == title else f' ({title})'}\n"
        for field in fields:
            yield f"`{field.name}`\n: {_values(field)}<br>{markdown(field.help)}\n"


def _first_paragraph(cls: type) -> str:
    return " ".join((cls.__doc__ or "").partition("\n\n")[0].split())


def _values(field: FormField) -> str:
    """Say what may be entered, and the default."""
    text = markdown(field.bounds_text)
    if field.required:
        return f"{text}; **required**"
    default = "empty" if field.default in (None, UNSET) else f"`{json.encode(to_builtins(field.default)).decode()}`"
    return f"{text}; default {default}".replace('`"', "`").replace('"`', "`")


def _command(parser: Parser, level: int, everywhere: frozenset[str] = frozenset()) -> Iterator[str]:
    """One command, then those below it; options that it shares with all others are left to the first."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if level > 1:
        yield f"{'#' * level} {parser.prog}\n"
        yield f"{markdown(parser.description or '')}\n"
    if level == 1 or not groups:
        usage = parser.format_usage().removeprefix("usage: ")
        yield f"```text\n{' '.join(usage.split())}\n```\n"
        yield from _arguments(parser, everywhere)
    for group in groups:
        for child in group.choices.values():
            yield from _command(child, level + 1, frozenset({"--home", "--trust-owner"}))


def _arguments(parser: Parser, left_out: frozenset[str]) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction | argparse._HelpAction) or left_out & {*action.option_strings}:
            continue
        value = f" {action.metavar}" if action.metavar and action.nargs != 0 else ""
        if action.choices and not action.metavar:
            value = f" {'|'.join(map(str, action.choices))}"
        terms = [f"`{name}{value}`" for name in action.option_strings] or [f"`{action.metavar or action.dest}`"]
        text = (action.help or "") % {"prog": parser.prog, "default": action.default}
        yield f"{', '.join(terms)}\n: {markdown(text)}{' (required)' if _is_required(action) else ''}\n"


def _is_required(action: argparse.Action) -> bool:
    return bool(action.option_strings) and action.required


def _metrics_of(stage: Stage, title: str) -> Iterator[str]:
    rows = [_metric(metric) for metric in metrics_of(stage)]
    yield f"### {title}\n"
    yield "| metric | in the console | better | definition |\n|---|---|---|---|"
    yield from (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
    yield ""


def _metric(metric: Metric) -> tuple[str, ...]:
    unit = "" if metric.unit == "number" or metric.unit in metric.label else f", {metric.unit}"
    return f"`{metric.name}`", f"{metric.label}{unit}", metric.better or "", markdown(metric.help)


def markdown(text: str) -> str:
    """Turn plain text, in which only code between backticks, options and addresses mean something, into Markdown."""
    text = "".join(part if part.startswith("`") else _OPTION.sub(r"`\1`", part) for part in _CODE.split(text))
    return "".join(part if part.startswith("`") else _plain(part) for part in _CODE.split(text))


def _plain(text: str) -> str:
    escaped = re.sub(r"([\\*_<>\[\]$#])", r"\\\1", _URL.sub("\0", text))
    found = iter(_URL.finditer(text))
    return re.sub("\0", lambda _: _address(next(found)), escaped)


def _address(match: re.Match[str]) -> str:
    return f"<{match[1]}>" if match[1] else f"[arXiv:{match[2]}](https://arxiv.org/abs/{match[2]})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", choices=PAGES)
    sys.stdout.write(PAGES[parser.parse_args(arguments).page]() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
