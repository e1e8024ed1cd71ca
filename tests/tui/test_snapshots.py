"""A few screens as they were accepted, as SVG. Fixed data, clock, sizes and themes.

A difference leaves the new picture beside the old one, as ``NAME.new.svg``. If it is right:
``UPDATE_SNAPSHOTS=1 pytest tests/tui/test_snapshots.py``.
"""

import os
import re
from pathlib import Path

import pytest
from tests.tui.app_kit import Shown, run_app

from stackllama_console.tui.screens import runs as runs_module
from stackllama_engine.contract.run_dir import Home

FOLDER = Path(__file__).with_name("snapshots")
NOW = 1_700_003_600.0
"""An hour after the runs were created."""

_IDS = re.compile(r"terminal-\d+")


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold the clock, and keep the machine silent."""
    monkeypatch.setattr(runs_module, "now", lambda: NOW)
    monkeypatch.setattr("stackllama_console.tui.screens.monitor.now", lambda: NOW)
    monkeypatch.setattr("stackllama_console.tui.watched.predicted_peak", lambda run: None)
    keymap = "/home/you/.config/stackllama/keymap.yaml"  # a test's own path wraps where its folder's name is long
    monkeypatch.setattr("stackllama_console.tui.screens.help.keymap_file", lambda: keymap)


def check(name: str, svg: str) -> None:
    """Compare with the accepted picture."""
    accepted, new = FOLDER / f"{name}.svg", FOLDER / f"{name}.new.svg"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        accepted.write_text(svg)
        new.unlink(missing_ok=True)
        return
    if not accepted.is_file() or accepted.read_text() != svg:
        new.write_text(svg)
        pytest.fail(f"{new} differs from {accepted.name}; if it is right: UPDATE_SNAPSHOTS=1 pytest {__file__}")
    new.unlink(missing_ok=True)


SHOTS: dict[str, tuple[tuple[str, ...], tuple[int, int], str, tuple[str, ...]]] = {
    "runs": ((), (80, 24), "dusk", ("tuned", "✗ failed")),
    "runs-wide-selected-paper": (("space", "j", "space"), (120, 30), "paper", ("2 selected",)),
    "runs-tiny": ((), (20, 5), "dusk", ("● run",)),
    "monitor": (("enter",), (80, 24), "dusk", ("rollout 40", "KL 3")),
    "monitor-wide-okabe-ito": (("enter",), (160, 45), "okabe-ito", ("rollout 40", "because 40")),
    "monitor-failed-contrast": (("j", "j", "enter"), (100, 30), "contrast", ("OutOfMemoryError", "try ")),
    "monitor-log-search": (("enter", "5", "slash"), (80, 24), "ansi", ("rollout 40",)),
    "samples": (("a",), (100, 30), "dusk", ("because 40",)),
    "compare": (("j", "space", "j", "space", "c"), (120, 36), "dusk", ("compare  2 runs", "loss")),
    "help": (("question_mark",), (80, 24), "dusk", ("runs.launch",)),
    "confirm": (("j", "x"), (80, 24), "dusk", ("Stop alive?",)),
}
"""Keys from the list of runs, size, theme, and what stands there when it is done."""


LEAVING = {"enter", "a", "c"}
QUICK = {"runs", "monitor", "confirm"}
REST = sorted(SHOTS.keys() - QUICK)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SHOTS]
)
def test_screen(stocked: Home, name: str) -> None:
    keys, size, theme, texts = SHOTS[name]
    taken: list[str] = []

    async def script(shown: Shown) -> None:
        shown.app.theme = theme
        await shown.until(lambda: len(shown.front._shown) == 4 and shown.front._machine)
        if not LEAVING & set(keys):  # the heading names home and machine
            shown.front.index.home = Home(Path("/home/you/runs"))
            shown.front._machine = "no GPU; runs use the CPU"
            shown.front._fill()
        for key in keys:
            await shown.press(key)
        await shown.shows(*texts)
        await shown.pilot.pause(0.3)
        taken.append(_IDS.sub("terminal", shown.app.export_screenshot(title="stackllama-console")))

    run_app(stocked, script, size=size)
    check(name, taken[0])
