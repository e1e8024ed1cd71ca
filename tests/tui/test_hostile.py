"""Hostile text on every screen: nothing crashes, no action fires, no control character is drawn, markup stays text.

The same in a real terminal is in `test_pty_runs`; each screen's own oddities are with its other tests.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import PAYLOADS
from tests.tui.app_kit import Shown, run_app
from tests.tui.hostile import ALL, hostile_directory, hostile_run
from tests.tui.screens_kit import isolate, make_run
from textual import events
from textual.widgets import Input

from stackllama_console.tui.app import ConsoleApp
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage

SIZES = [(80, 24), pytest.param((160, 45), marks=pytest.mark.slow), pytest.param((20, 5), marks=pytest.mark.slow)]
OTHERS = ("hostile-alive", "hostile-done", "hostile-whole", "hostile-merge")
MARKUP = "[@click=app.quit]"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Make runs of several stages and states, all hostile, and files that are no runs."""
    home = isolate(tmp_path, monkeypatch)
    hostile_run(home)
    hostile_run(home, "hostile-alive", Stage.SFT, phase="running")
    hostile_run(home, "hostile-done", Stage.REWARD, phase="finished")
    hostile_run(home, "hostile-whole", Stage.PIPELINE, phase="finished")
    hostile_run(home, "hostile-merge", Stage.MERGE, phase="finished")
    for name in ("[@click=app.quit]x", "-rf", "\x1b]52;c;aGk=\x07", "\u202egnp", "a b"):
        (home.runs_dir / name).mkdir()
        (home.runs_dir / name / "state.json").write_text('{"stage": "sft", "phase": "finished"}')
    damaged = make_run(home, Stage.SFT, "damaged")
    (damaged.path / "state.json").write_text('{"stage": "\\u001b]52;c;aGk=\\u0007[/]"}')
    return home


@pytest.fixture(autouse=True)
def no_quit(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fail if an action fires by itself."""
    fired: list[str] = []
    original = ConsoleApp.action_quit

    async def action_quit(self: ConsoleApp) -> None:
        fired.append("quit")
        await original(self)

    monkeypatch.setattr(ConsoleApp, "action_quit", action_quit)
    return fired


def _through(home: Home, script: Any, size: tuple[int, int], target: Any = None) -> None:
    async def checked(shown: Shown) -> None:
        await script(shown)
        shown.assert_clean()
        assert "\x1b" not in "".join(shown.said)

    run_app(home, checked, size=size, target=target)


async def _tour(shown: Shown, *keys: str) -> None:
    for key in keys:
        await shown.press(key)
        await shown.pilot.pause(0.02)
        shown.assert_clean()


async def _paste(shown: Shown, text: str) -> None:
    """Paste as a terminal does."""
    shown.app.post_message(events.Paste(text))
    await shown.pilot.pause(0.1)
    shown.assert_clean()
    assert isinstance(shown.app.focused, Input) and "stolen clipboard" in shown.app.focused.value


@pytest.mark.parametrize("size", SIZES)
def test_hostile_runs_are_listed_as_plain_text(home: Home, no_quit: list[str], size: tuple[int, int]) -> None:
    async def script(shown: Shown) -> None:
        await shown.until(lambda: len(shown.front._shown) == 6)
        await _tour(shown, "j", "j", "space", "j", "space", "z", "j", "j", "slash")
        await shown.until(lambda: isinstance(shown.app.focused, Input))
        await _paste(shown, ALL)
        assert "stolen clipboard" in shown.front.filter_text
        await _tour(shown, "enter", "escape", "escape", "question_mark", "j", "escape")
        for row in shown.front._shown:
            assert all("\x1b" not in str(text) for text in (row.id, row.cause, row.model, row.at, row.error))
        if size[0] >= 80:
            await _tour(shown, "g", "j")  # the first one is damaged: its recipe's age is all that is known
            await shown.shows("cause: stolen clipboard")

    _through(home, script, size)
    assert no_quit == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["hostile", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_hostile_run_is_monitored_as_plain_text(
    home: Home, no_quit: list[str], name: str, size: tuple[int, int]
) -> None:
    async def script(shown: Shown) -> None:
        await shown.reaches("MonitorScreen")
        await shown.until(lambda: shown.front._last_update is not None)
        if name == "hostile" and size[0] >= 80:
            await shown.shows("cause  stolen clipboard", "not red")
        await _tour(
            shown, "5", "v", "5", "6", "6", "right_square_bracket", "right_square_bracket", "1", "y", "s", "c", "1"
        )
        await _tour(shown, "full_stop", "d", "j", "Y", "escape", "slash")
        await shown.until(lambda: isinstance(shown.app.focused, Input))
        await _paste(shown, ALL)
        await _tour(shown, "enter", "N", "escape", "D", "n", "x", "n", "question_mark", "escape")
        assert shown.name == "MonitorScreen"

    _through(home, script, size, target=name)
    assert no_quit == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", ["a", "e", "t"])
def test_screens_of_a_hostile_run_are_plain_text(
    home: Home, no_quit: list[str], key: str, size: tuple[int, int]
) -> None:
    async def script(shown: Shown) -> None:
        await shown.reaches("MonitorScreen")
        await shown.until(lambda: shown.front._last_update is not None)
        await _tour(shown, key)
        await shown.until(lambda: shown.name != "MonitorScreen")
        if key == "a":
            await shown.until(lambda: "stolen" in shown.text or size[0] < 80)
        await _tour(shown, "j", "j", "tab", "question_mark", "escape")

    _through(home, script, size, target="hostile")
    assert no_quit == []


@pytest.mark.parametrize("size", SIZES)
def test_hostile_directory_is_monitored_as_plain_text(
    home: Home, no_quit: list[str], tmp_path: Path, size: tuple[int, int]
) -> None:
    async def script(shown: Shown) -> None:
        await shown.reaches("MonitorScreen")
        await shown.until(lambda: shown.front._last_update is not None)
        if size[0] >= 80:
            await shown.shows("] out  another trainer", "not red")
        await _tour(shown, "5", "5", "6", "6", "right_square_bracket", "d", "j", "escape", "x")

    _through(home, script, size, target=hostile_directory(tmp_path / "outputs"))
    assert no_quit == []


def test_pasted_text_is_sanitised(home: Home, no_quit: list[str]) -> None:
    async def script(shown: Shown) -> None:
        await shown.until(lambda: len(shown.front._shown) == 6)
        await _tour(shown, "o")
        await _paste(shown, ALL)
        await shown.press("enter")
        await shown.reaches("MonitorScreen")
        await shown.until(lambda: shown.front._last_update is not None)

    _through(home, script, (80, 24))
    assert no_quit == []


def test_hostile_keymap_and_theme_are_notices(home: Home, no_quit: list[str], tmp_path: Path) -> None:
    config = tmp_path / "config" / "stackllama"
    (config / "themes").mkdir(parents=True)
    (config / "themes" / f"{MARKUP}x.yaml").write_text(json.dumps({"name": ALL, "primary": ALL}))
    (config / "keymap.yaml").write_text(json.dumps({payload: payload for payload in PAYLOADS} | {"runs.launch": ALL}))

    async def script(shown: Shown) -> None:
        await shown.until(lambda: len(shown.front._shown) == 6)
        assert any("theme skipped" in text for text in shown.said)
        (notice,) = (text for text in shown.said if "unknown binding" in text)
        assert notice.count("unknown binding") == 6 and f"and {len(PAYLOADS) - 6} more" in notice
        await _tour(shown, "question_mark", "j", "escape")

    _through(home, script, (80, 24))
    assert no_quit == []


def test_hostile_settings_are_plain_text(home: Home, no_quit: list[str], tmp_path: Path) -> None:
    file = tmp_path / "state" / "stackllama" / "settings.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"theme": ALL, "stage": ALL, "model": ALL, "recent_models": PAYLOADS}))

    async def script(shown: Shown) -> None:
        await shown.until(lambda: len(shown.front._shown) == 6)
        assert shown.app.theme == "dusk"
        await _tour(shown, "n")
        await shown.reaches("LaunchScreen")
        await _tour(shown, "j", "m", "down", "escape")

    _through(home, script, (80, 24))
    assert no_quit == []
