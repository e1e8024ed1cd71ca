"""Other trainers' runs that were opened stay in the list of runs, read-only, until they are forgotten."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from tests.readers.event_bytes import event, scalar
from tests.tui.app_kit import Shown, run_app

from stackllama_console.readers.foreign_index import ForeignIndex
from stackllama_console.readers.run_columns import last_text
from stackllama_console.readers.run_filter import parse_filter
from stackllama_console.settings import Settings, load_settings, save_settings
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
        await shown.shows(
            "Delete 1 run?", "aligned", "Forget 1 run of other trainers?", "delete 1 run and forget 1 run"
        )
        await shown.press("n", "escape", "G", "D")
        await shown.notified("their-run forgotten; its files stay")
        await shown.until(lambda: "their-run" not in shown.text)

    run_app(stocked, script, target=other)
    assert (other / "trainer_log.jsonl").is_file() and load_settings()[0].foreign_runs == []


def test_several_selected_are_forgotten_after_one_question(stocked: Home, tmp_path: Path) -> None:
    others = [_foreign(tmp_path / name) for name in ("theirs-1", "theirs-2")]
    save_settings(Settings(foreign_runs=[str(path) for path in others]))

    async def script(shown: Shown) -> None:
        await shown.shows("theirs-1", "theirs-2")
        await shown.press("G", "space", "k", "space", "D")
        await shown.shows("Forget 2 runs of other trainers? The files stay.")
        await shown.press("y")
        await shown.notified("theirs-1, theirs-2 forgotten; their files stay")
        await shown.until(lambda: "theirs-1  " not in shown.text and not shown.front.selected)

    run_app(stocked, script)
    assert all((path / "trainer_log.jsonl").is_file() for path in others) and load_settings()[0].foreign_runs == []


def test_rows_follow_their_directories(tmp_path: Path) -> None:
    moment = time.time()
    busy, gone = _foreign(tmp_path / "busy"), _foreign(tmp_path / "gone")
    index = ForeignIndex(lambda: [str(busy), str(gone)], lambda: moment)
    assert index.poll() and not index.poll()
    assert [(row.name, row.phase, row.at) for row in index.rows] == [
        ("busy", "running", ""),
        ("gone", "running", ""),
    ]
    assert [(row.step, row.total_steps, row.metric) for row in index.rows] == [(1, 9, ("loss", 0.5))] * 2
    (gone / "trainer_log.jsonl").unlink()
    gone.rmdir()
    assert not index.poll()  # not due yet
    moment += 7300
    assert index.poll()
    assert [(row.phase, row.at, row.error) for row in index.rows] == [
        ("silent", "no sign for 2 hours", None),
        ("unknown", "", "it is gone"),
    ]


def test_a_row_says_what_the_monitor_says(tmp_path: Path) -> None:
    done = _foreign(tmp_path / "done", days=3)
    (done / "trainer_log.jsonl").write_text('{"current_steps": 40, "total_steps": 40, "loss": 0.25}\n')
    events = tmp_path / "events"
    events.mkdir()
    (events / "events.out.tfevents.1000.h").write_bytes(event(7, scalar("train/loss", 1.5)))
    index = ForeignIndex(lambda: [str(done), str(events)])
    index.poll()
    first, second = index.rows
    assert (first.phase, first.step, first.total_steps, first.metric) == ("finished", 40, 40, ("loss", 0.25))
    assert last_text(first) == "loss 0.25" and not first.created
    assert (second.step, second.created, second.metric) == (7, 1000.0, ("loss", 1.5))
    older = parse_filter("age>1s")
    assert [older.passes(row, 2000.0) for row in index.rows] == [False, True]  # an unknown age is not old


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
