"""What to wait for on the screen, taken from the console's own tables, so that a renamed label needs no change here."""

import re
from typing import Any

from textual.app import App
from textual.binding import Binding
from textual.screen import Screen

from stackllama_console.readers.chart_sets import charts_of
from stackllama_console.tui.app import ConsoleApp
from stackllama_console.tui.screens.runs import RunsScreen
from stackllama_engine.contract.stages import Stage

HELP = re.compile(r" (app|chart|log|monitor)\.[a-z_]+ ")
"""Ids of bindings, which the help alone shows; people's keymaps name them, so they stay."""


def runs_screen() -> list[str]:
    """Return the heading of the runs screen, and the labels of a key that every home has and of the application's last.

    Its first key is the demo's, which an empty home alone has.
    """
    return [RunsScreen.HEADING, f" {_labels(RunsScreen)[1]} ", _labels(ConsoleApp)[-1]]


def charts(stage: Stage, count: int) -> list[str]:
    """Return the titles of a stage's first charts."""
    return [chart.title for chart in charts_of(stage)[:count]]


def _labels(owner: type[Screen[Any]] | type[App[Any]]) -> list[str]:
    """Return the labels of the keys that are shown in the last line of the screen, in their order."""
    return [each.description for each in owner.BINDINGS if isinstance(each, Binding) and each.show]
