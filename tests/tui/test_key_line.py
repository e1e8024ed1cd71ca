"""The last line: keys of the screen and of the focus, and what stays where not all fit."""

from pathlib import Path

import pytest
from tests.tui.screens_kit import Driven, drive, isolate

from stackllama_console.tui.screens.runs import RunsScreen
from stackllama_console.tui.widgets.key_line import KeyLine
from stackllama_engine.contract.run_dir import Home


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
