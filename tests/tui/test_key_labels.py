"""One word per action: the label of a key begins with the verb of the command that does the same."""

import re
from pathlib import Path
from typing import Any

import pytest
from textual.binding import Binding
from textual.keys import format_key

from stackllama_console.cli.parser import Parser, build_parser
from stackllama_console.tui.app import ConsoleApp
from stackllama_console.tui.keymap import Scope
from stackllama_console.tui.screens.scopes import all_scopes

SAME = {
    "open": ("runs.open", "runs.attach"),
    "launch": ("runs.launch", "launch.launch", "command.launch"),
    "chat": ("runs.chat", "monitor.chat"),
    "runs stop": ("runs.stop", "monitor.stop"),
    "runs resume": ("runs.resume", "monitor.resume"),
    "runs save": ("runs.save", "monitor.save"),
    "runs sample": ("monitor.sample", "runs.samples", "monitor.samples"),
    "runs pause": ("monitor.pause",),
    "runs set": ("monitor.change",),
    "runs tag": ("runs.tag",),
    "runs fork": ("runs.fork", "monitor.fork"),
    "runs note": ("runs.note",),
    "runs rename": ("runs.rename",),
}
"""Command to the bindings that do the same, or show what it wrote (`samples.jsonl`)."""

OTHER_WORD = {
    "runs rm": (("runs.delete", "monitor.delete"), "delete", "`rm` is the shell's abbreviation; a label has room"),
    "runs continue": (("monitor.pause",), "pause / continue", "one key for both: it continues a run that is paused"),
    "runs logs": (("monitor.panel_5",), "show only the log", "the log is always shown; the key enlarges it"),
    "runs show": (
        ("runs.open",),
        "open",
        "what `show` prints is on the monitor, which `open` opens",
    ),
    "runs watch": (("runs.open",), "open", "the monitor follows the run, as `watch` does"),
    "runs repair": (("runs.resume",), "resume", "on a damaged run the key repairs; the line about the run says so"),
    "gpus": (
        ("runs.gpus", "monitor.gpus", "compare.gpus", "launch.gpus"),
        "show GPUs",
        "an abbreviation; labels begin with a small letter",
    ),
    "plan": (("launch.budget",), "budget", "the panel is the memory budget; it is there before anything is planned"),
}
"""Command to its bindings, their label, and why it is not the verb."""

NO_KEY = {
    "demo": "made for the shell",
    "recipe convert": "files to files",
    "pipeline": "a stage of the launch form",
    "merge": "a stage of the launch form",
    "runs ls": "the first screen",
    "runs verify": "reads every checkpoint: minutes",
    "export": "writes a folder, which is typed",
    "audit": "made at the end of every reward run, whose page says its verdict",
    "data prepare": "files to files",
    "data preview": "about a source, not a run",
    "doctor": "about the machine",
    "info": "about the machine",
}
"""Commands without a key, and why."""


def _commands(parser: Any, before: str = "") -> set[str]:
    """Names of all commands below a parser, with the names of their groups."""
    found: set[str] = set()
    for action in parser._actions:
        if isinstance(action.choices, dict) and all(isinstance(child, Parser) for child in action.choices.values()):
            for name, child in action.choices.items():
                found |= _commands(child, f"{before}{name} ")
    return found or {before.strip()}


def _labels() -> dict[str, str]:
    """Label of every binding by its id."""

    def of(scope: Scope) -> dict[str, str]:
        own = (binding for bindings in scope.widgets.values() for binding in bindings)
        return {binding.id: binding.description for binding in (*scope.bindings, *own) if binding.id}

    return {name: label for scope in all_scopes(ConsoleApp.BINDINGS) for name, label in of(scope).items()}


README = Path(__file__).parents[2] / "README.md"
WHERE = {
    "everywhere": ("app", "screen"),
    "runs": ("runs",),
    "monitor": ("monitor", "charts"),
    "a chart": ("chart",),
    "chat": ("chat",),
    "the log": ("log",),
    "compare": ("compare", "charts"),
    "launch": ("launch", "form", "budget"),
}
"""First column of README's table of keys to the first words of the bindings' ids."""
SMALL_WORDS = {"a", "an", "and", "of", "the", "your"}


def _keys_in_readme() -> dict[str, list[tuple[list[str], str]]]:
    """Rows of README's table of keys: where to (keys, label without what is in parentheses)."""
    table = README.read_text(encoding="utf-8").partition("| where | keys |\n|---|---|\n")[2].partition("\n\n")[0]
    rows: dict[str, list[tuple[list[str], str]]] = {}
    for line in table.splitlines():
        where, cells = (cell.strip() for cell in line.strip("| ").split(" | "))
        items = re.split(r" · |, (?=`\w+` \w)", cells)
        labels = (re.sub(r"`[^`]*`|–|\([^)]*\)", " ", item) for item in items)
        rows[where] = [(_keys_of(item), " ".join(label.split())) for item, label in zip(items, labels, strict=True)]
    return rows


def _keys_of(item: str) -> list[str]:
    if numbers := re.match(r"`(\d)`–`(\d)`", item):
        return [str(number) for number in range(int(numbers[1]), int(numbers[2]) + 1)]
    keys = re.match(r"(?:`[^`]+`[ /]*)*", item)
    return re.findall(r"`([^`]+)`", keys[0]) if keys else []


def _bindings(prefixes: tuple[str, ...]) -> dict[str, Binding]:
    """Bindings by each of their keys, as people write them."""
    by_key: dict[str, Binding] = {}
    for scope in all_scopes(ConsoleApp.BINDINGS):
        for binding in (*scope.bindings, *(each for bindings in scope.widgets.values() for each in bindings)):
            if (binding.id or "").partition(".")[0] in prefixes:
                for key in binding.key.split(","):
                    shown = {"escape": "esc", "enter": "enter", "space": "space"}.get(key) or format_key(key)
                    by_key[shown] = binding
    return by_key


@pytest.mark.parametrize("where", WHERE)
def test_keys_in_readme_are_bound_and_have_the_words_of_their_labels(where: str) -> None:
    bindings, wrong = _bindings(WHERE[where]), []
    for keys, label in _keys_in_readme()[where]:
        missing = [key for key in keys if key not in bindings]
        labels = {bindings[key].description for key in keys if key in bindings}
        words = set(re.findall(r"\w+", " ".join(labels))) | SMALL_WORDS
        strange = [] if label == "as above" else [word for word in re.findall(r"\w+", label) if word not in words]
        if missing or strange or not keys:
            wrong.append(f"{' '.join(keys)} {label}: not bound {missing}, labels {sorted(labels)}")
    assert wrong == []


def test_readme_has_a_table_of_keys_for_each_place() -> None:
    assert _keys_in_readme().keys() == WHERE.keys()


def test_every_command_has_a_key_or_a_reason() -> None:
    assert _commands(build_parser()) == {*SAME, *OTHER_WORD, *NO_KEY}


@pytest.mark.parametrize(("command", "ids"), SAME.items())
def test_label_begins_with_the_verb_of_its_command(command: str, ids: tuple[str, ...]) -> None:
    labels = _labels()
    verb = command.split()[-1]
    assert {name: labels[name] for name in ids if not labels[name].startswith(verb)} == {}


@pytest.mark.parametrize(("command", "ids", "label"), [(name, *row[:2]) for name, row in OTHER_WORD.items()])
def test_other_labels_are_the_ones_that_have_a_reason(command: str, ids: tuple[str, ...], label: str) -> None:
    labels = _labels()
    assert {labels[name] for name in ids} == {label}, command


def test_an_action_has_one_label_on_every_screen() -> None:
    by_action: dict[str, set[str]] = {}
    for scope in all_scopes(ConsoleApp.BINDINGS):
        for binding in scope.bindings:
            if binding.action.startswith("run("):
                by_action.setdefault(binding.action, set()).add(binding.description)
    assert {action: labels for action, labels in by_action.items() if len(labels) > 1} == {}


def test_a_label_fits_its_column_in_the_help() -> None:
    assert {name: label for name, label in _labels().items() if len(label) > 30} == {}


def test_labels_begin_with_a_small_letter() -> None:
    assert [label for label in _labels().values() if not label[:1].islower()] == []
