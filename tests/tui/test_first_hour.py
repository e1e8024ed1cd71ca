"""A person's first hour at 80×24, from an empty home to a run that is deleted, by keys that the screen names alone.

The application, launches, supervisors and the pipeline are real; stages and the generator are stand-ins (`hour.py`).
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.tui.terminal import Terminal

_PART = Path(__file__).with_name("hour.py")
_BAD, _GOOD = "0.5", "0.004"
_PAGES = 12


class Person:
    """Presses only what is named: on the screen, or in its help, which the footer offers."""

    def __init__(self, console: Terminal) -> None:
        self.console = console

    def sees(self, *texts: str) -> None:
        """Wait for these texts."""
        self.console.wait_for(*texts)

    def press(self, key: str, named: str) -> None:
        """Press a key once the screen names it so."""
        self.console.wait_for(named)
        self.console.settle(0.3)
        assert named in self.console.text(), f"{named!r} is gone; on the screen:\n{self.console.text()}"
        self.console.send(key)

    def learn(self, key: str, *named: str) -> None:
        """Press a key that the help of this screen names: on one line of it stand key and label."""
        self.press("?", "? help")
        self.console.wait_for("esc closes")
        for _ in range(_PAGES):
            self.console.settle(0.3)
            if any(all(part in line for part in named) for line in self.console.text().splitlines()):
                break
            self.console.send("\x1b[6~")  # page down
        else:
            raise AssertionError(f"the help does not name {named}; on the screen:\n{self.console.text()}")
        self.press("\x1b", "esc closes")
        self.console.wait_gone("esc closes")
        self.console.send(key)

    def back(self) -> None:
        """Go back."""
        self.learn("\x1b", "esc", "back")

    def fill(self, key: str, value: str, before: str) -> None:
        """Find a key of the form and type another value over it."""
        self.press("/", "/ filter")
        self.console.send(f"{key}\r")
        self.sees("1 of ", f"● {key.rpartition('.')[2]}")
        self.press("e", "e edit")
        self.console.send("\x7f" * len(before) + f"{value}\r")
        self.sees(f"{value}  was {before}")

    def launch(self) -> None:
        """Launch what the form holds, and confirm it."""
        self.sees("✓ ready")
        self.press("\r", "⏎ launch")
        self.sees("source", f"{_BAD}")  # what is another value than before
        self.press("\r", "enter  launch")


@pytest.fixture
def person(tmp_path: Path) -> Callable[[], Person]:
    """Open the console on an empty home."""
    console = Terminal(tmp_path / "home", "console", command=(sys.executable, str(_PART)), size=(80, 24))
    yield Person(console)  # type: ignore[misc]
    console.close()


@pytest.mark.slow
def test_first_hour(person: Person) -> None:
    console = person.console
    person.sees("No runs here yet.", "d   the demo")

    person.press("d", "d demo")
    person.sees("[pipeline]", "✓ ready", "the demo's recipe")
    person.fill("sft.learning_rate", _BAD, _GOOD)
    person.launch()

    person.sees("✗ failed", "cause", "lower `learning_rate`")
    person.back()
    person.sees("at sft")

    person.press("e", "e: edit a copy")
    person.sees("[pipeline]", "cloned from")
    person.fill("sft.learning_rate", _GOOD, _BAD)
    person.launch()

    person.sees("✓ ppo merge", "✓ finished")
    person.back()
    person.sees("✓ finished", "✗ failed")

    person.press("/", "/ filter")
    console.send("-sft\r")
    person.sees("filter: -sft")
    person.press(" ", "space select")
    person.sees("1 selected")
    while "■ └ sft " not in console.text().split("✗ failed")[0].splitlines()[-1]:
        person.learn("j", "j", "next run")
        person.press(" ", "space select")
        console.settle(0.3)
    person.press("c", "c compare")
    person.sees("compare", "loss")
    person.back()
