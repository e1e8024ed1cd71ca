"""A person's first hour at 80×24, from an empty home to a run that is deleted, by keys that the screen names alone.

The application, launches, supervisors and the pipeline are real; stages and the generator are stand-ins (`hour.py`).
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tui.terminal import Terminal

_PART = Path(__file__).with_name("hour.py")
_BAD, _GOOD = "0.5", "0.004"
_END = 10.0
"""Seconds after which a page that does not move is the last one."""
_PATIENCE = 120.0


class Person:
    """Presses only what is named: on the screen, or in its help, which the footer offers."""

    def __init__(self, console: Terminal) -> None:
        self.console = console

    def sees(self, *texts: str) -> None:
        """Wait for these texts."""
        self.console.wait_for(*texts, seconds=_PATIENCE)

    def press(self, key: str, named: str) -> None:
        """Press a key once the screen names it so."""
        self.sees(named)
        self.console.send(key)

    def learn(self, key: str, *named: str) -> None:
        """Press a key that the help of this screen names: on one line of it stand key and label."""
        self.press("?", "? help")
        self.console.wait_for("esc closes")
        while not any(all(part in line for part in named) for line in self.console.text().splitlines()):
            before = self.console.text()
            self.console.send("\x1b[6~")  # page down
            self.console.until(lambda before=before: self.console.text() != before, _END)
        self.press("\x1b", "esc closes")
        self.console.wait_gone("esc closes")
        self.console.send(key)

    def back(self) -> None:
        """Go back."""
        self.learn("\x1b", "esc", "back")

    def fill(self, words: str, value: str, before: str) -> None:
        """Find a key of the form and type another value over it."""
        self.press("/", "/ filter")
        self.console.send(f"{words}\r")
        self.sees("1 of ", "● learning_rate")
        self.press("e", "e edit")
        self.console.send("\x7f" * len(before) + f"{value}\r")
        self.sees(f"learning_rate  {value}  ")

    def launch(self) -> None:
        """Launch what the form holds, and confirm it."""
        self.sees("✓ ready")
        self.press("\r", "⏎ launch")
        self.press("\r", "enter  launch")

    def filter_runs(self, text: str) -> None:
        """Narrow the list of runs."""
        self.press("/", "/ filter")
        self.console.send(f"{text}\r")
        self.sees(f"filter: {text}")


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    """Open the console on an empty home."""
    console = Terminal(tmp_path / "home", "console", command=(sys.executable, str(_PART)), size=(80, 24))
    yield Person(console)
    console.close()


@pytest.mark.parametrize(
    "whole", [pytest.param(False, marks=pytest.mark.slow), pytest.param(True, marks=pytest.mark.long)]
)
def test_first_hour(person: Person, whole: bool) -> None:
    """Launch the demo with a mistake, see why it failed, fix it, compare, chat, delete.

    ``whole``: the pipeline; else its first stage.
    """
    console = person.console
    words = "sft.learning_rate" if whole else "peak learning"
    person.sees("No runs here yet.", "d   the demo")

    person.press("d", "d demo")
    person.sees("[pipeline]", "✓ ready", "the demo's recipe")
    if not whole:
        person.press("]", "] next stage")
        person.sees("[SFT]", "model  demo", "✓ ready")
    person.fill(words, _BAD, _GOOD)
    person.launch()

    person.sees("✗ failed", "cause", "lower `learning_rate`")
    person.back()
    person.sees("runs  ", "✗ failed")

    person.press("e", "e: edit a copy")
    person.sees("cloned from")
    person.fill(words, _GOOD, _BAD)
    person.launch()

    person.sees("✓ finished")
    person.back()
    person.sees("runs  ", "✓ finished", "✗ failed")

    person.filter_runs("sft")
    person.learn("g", "g", "first run")  # the cursor is still on the run that failed
    person.press(" ", "space select")
    person.sees("1 selected")
    if whole:  # past the merged model
        person.learn("j", "j", "next run")
    person.press(" ", "space select")
    person.sees("2 selected")
    person.press("c", "c compare")
    person.sees("compare", "loss")
    person.back()
    person.sees("2 selected")
    person.back()
    console.wait_gone("filter: ")
    person.back()
    console.wait_gone("selected")

    person.filter_runs("finished")
    person.press("\r", "⏎ open")
    person.press("t", "t chat")
    person.sees("fake", "type a question")
    console.send("hello there")
    person.press("\r", "enter ask")
    person.sees("tuned:hello tuned:there")
    person.press("\x1b", "escape leaves the input")
    person.press("\x1b", "esc back")
    console.wait_gone("tuned:hello")
    person.back()
    person.sees("filter: finished")
    person.back()
    console.wait_gone("filter: ")

    person.filter_runs("failed")
    person.learn("D", "D", "delete")
    person.press("y", "y  delete")
    person.sees("no run matches the filter")
    person.back()
    person.sees("✓ finished")
    assert "✗ failed" not in console.text()
    person.press("q", "q quit")
    assert console.end() == 0
