"""The last line: keys of the screen and of the focus, and what stays where not all fit."""

from pathlib import Path

import pytest
from tests.tui.screens_kit import Driven, drive, isolate, make_run

from stackllama_console.tui.screens.help import HelpScreen, keys_text
from stackllama_console.tui.screens.runs import RunsScreen
from stackllama_console.tui.widgets.key_line import KeyLine
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return isolate(tmp_path, monkeypatch)


def test_the_screens_keys_come_before_the_applications_and_hidden_ones_are_absent(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("? help")
        line = driven.lines[-1]
        assert line.index(" n launch ") < line.index(" / filter ") < line.index(" ? help  q quit")
        assert "delete" not in line

    drive(home, lambda: RunsScreen(home), script, size=(120, 24))


def test_where_not_all_fit_the_applications_stay(home: Home) -> None:
    async def script(driven: Driven) -> None:
        await driven.shows("? help")
        line = driven.lines[-1]
        assert " d demo " in line and line.rstrip().endswith(" ? help  q quit")
        assert "filter" not in line and "filter" in driven.screen.query_one(KeyLine).plain

    drive(home, lambda: RunsScreen(home), script, size=(30, 24))


def test_with_ascii_alone_keys_are_words(home: Home) -> None:
    make_run(home, Stage.SFT, "one")

    async def script(driven: Driven) -> None:
        await driven.shows("one", "enter open")
        assert driven.screen.query_one(KeyLine).plain.isascii()
        assert "  enter " in keys_text(driven.screen).plain
        await driven.press("question_mark")
        await driven.until(lambda: isinstance(driven.app.screen, HelpScreen))
        keys = keys_text(driven.app.screen).plain
        assert "  j down " in keys and "  k up " in keys and keys.isascii()

    drive(home, lambda: RunsScreen(home), script, ascii=True)
