"""Other trainers' runs that were opened stay in the list of runs, read-only, until they are forgotten."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from tests.tui.app_kit import Shown, run_app

from stackllama_console.readers.foreign_index import ForeignIndex
from stackllama_console.settings import Settings, load_settings
from stackllama_console.tui.widgets.key_line import KeyLine
from stackllama_engine.contract.run_dir import Home


def _foreign(folder: Path, days: float = 0.0) -> Path:
    folder.mkdir(parents=True)
    file = folder / "trainer_log.jsonl"
    file.write_text('{"current_steps": 1, "total_steps": 9, "loss": 0.5}\n')
    moment = time.time() - days * 86400
    os.utime(file, (moment, moment))
    return folder


def test_an_opened_run_is_listed_read_only_and_forgotten(stocked: Home, tmp_path: Path) -> None:
    other = _foreign(tmp_path / "their-run", days=3.5)

    async def script(shown: Shown) -> None:
        await shown.shows("loss 0.5", "no sign for 3 days")
        await shown.press("escape")
        await shown.reaches("RunsScreen")
        await shown.shows("their-run", "○ silent", "no sign for 3 days")
        await shown.press("G")
        assert shown.front.row_id == str(other) and "runs  4" in shown.lines[0]
        await shown.shows("enter: open, D: forget it")
        offered = shown.front.query_one(KeyLine).plain
        assert "⏎ open" in offered and all(f" {word}" not in offered for word in ("stop", "resume", "samples"))
        for key in "xwreat":
            await shown.press(key)
        for key in ("number_sign", "i", "R"):
            await shown.press(key)
            assert shown.name == "RunsScreen"
        assert set(shown.said) == {"read-only: this run was started by another trainer"}
        await shown.press("enter")
        await shown.reaches("MonitorScreen")
        await shown.press("escape", "escape")  # the notices, the screen
        await shown.reaches("RunsScreen")
        await shown.press("space", "g", "space", "D")
        await shown.shows("Delete 1 run?", "aligned", "their-run: read-only")
        await shown.press("n", "escape", "G", "D")
        await shown.notified("their-run forgotten; its files stay")
        await shown.until(lambda: "their-run" not in shown.text)

    run_app(stocked, script, target=other)
    assert (other / "trainer_log.jsonl").is_file() and load_settings()[0].foreign_runs == []


def test_rows_follow_their_directories(tmp_path: Path) -> None:
    moment = time.time()
    busy, gone = _foreign(tmp_path / "busy"), _foreign(tmp_path / "gone")
    index = ForeignIndex(lambda: [str(busy), str(gone)], lambda: moment)
    assert index.poll() and not index.poll()
    assert [(row.name, row.phase, row.at) for row in index.rows] == [
        ("busy", "running", "another trainer"),
        ("gone", "running", "another trainer"),
    ]
    (gone / "trainer_log.jsonl").unlink()
    gone.rmdir()
    assert not index.poll()  # not due yet
    moment += 7300
    assert index.poll()
    assert [(row.phase, row.at, row.error) for row in index.rows] == [
        ("silent", "no sign for 2 hours", None),
        ("unknown", "", "it is gone"),
    ]


@pytest.mark.parametrize("name", ["a\nb", os.fsdecode(b"\xff"), "\x1b[2J"])
def test_a_name_that_could_not_be_written_is_not_remembered(name: str) -> None:
    settings = Settings()
    settings.remember_foreign(Path("/runs") / name)
    assert settings.foreign_runs == []


def test_the_newest_are_remembered_once(tmp_path: Any) -> None:
    settings = Settings()
    for number in (*range(20), 15):
        settings.remember_foreign(Path(f"/runs/{number}"))
    assert settings.foreign_runs[:3] == ["/runs/15", "/runs/19", "/runs/18"] and len(settings.foreign_runs) == 12
