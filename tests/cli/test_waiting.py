"""A run that waits for room on the disk says so, with numbers, in every command and screen."""

import io
from collections.abc import Callable
from typing import Any

from msgspec import json
from rich.console import Console

from stackllama_console.cli.bars import Bars
from stackllama_console.cli.follow import Follower
from stackllama_console.readers.run_reader import RunReader
from stackllama_console.readers.runs_index import RunsIndex
from stackllama_console.tui.widgets.status import head_line
from stackllama_engine.contract.requests import WAITING_FOR_ROOM
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage

REASON = "3.0 MiB free of the 12 MiB a checkpoint needs"
AT = f"waiting for room on the disk: {REASON}"
EVENTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("phase", {"phase": "train"}),
    ("progress", {"step": 12, "total_steps": 60}),
    ("metrics", {"step": 12, "metrics": {"loss": 1.5}}),
    ("health", {"data": {"message": f"{WAITING_FOR_ROOM} after step 12: {REASON}"}}),
    ("phase", {"phase": WAITING_FOR_ROOM, "data": {"reason": REASON}}),
)
THEME = {name: "#ffffff" for name in ("primary", "success", "warning", "error", "accent", "secondary", "foreground")}


def test_ls_and_show_say_that_a_run_waits_for_room(
    make_run: Callable[..., RunDir], write_events: Callable[..., None], run_main: Callable[..., Any]
) -> None:
    write_events(make_run(Stage.SFT, "one", "running"), *EVENTS)
    assert f"{AT}, last event" in run_main("runs", "show", "one").out
    assert json.decode(run_main("runs", "show", "one", "--json").out)["at"] == AT
    assert AT in run_main("runs", "ls").out
    assert json.decode(run_main("runs", "ls", "--json").out)["runs"][0]["at"] == AT


def test_watch_says_that_a_run_waits_for_room(
    home: Home, make_run: Callable[..., RunDir], write_events: Callable[..., None]
) -> None:
    run = make_run(Stage.SFT, "one", "running")
    stream = io.StringIO()
    display = Bars(Console(file=stream, force_terminal=True, width=150, height=24, highlight=False))
    follower = Follower(home, run, display)
    write_events(run, *EVENTS)
    follower.poll()
    display.close()
    text = Console(file=io.StringIO()).render_str(stream.getvalue(), markup=False).plain
    assert f"sft: {WAITING_FOR_ROOM} after step 12: {REASON}" in text
    assert AT in text.rpartition("12/60")[2], "in the bar, in place of metrics"


def test_monitor_and_runs_list_say_that_a_run_waits_until_it_continues(
    home: Home, make_run: Callable[..., RunDir], write_events: Callable[..., None]
) -> None:
    run = make_run(Stage.SFT, "one", "running")
    write_events(run, *EVENTS)
    reader, index = RunReader(run), RunsIndex(home)
    reader.poll()
    index.poll()
    assert AT in head_line(reader, THEME, 0.0).plain
    assert (index.rows[0].at, index.rows[0].waits) == (AT, True)
    write_events(run, ("phase", {"phase": "train"}))
    reader.poll()
    index.poll()
    assert "waiting" not in head_line(reader, THEME, 0.0).plain
    assert (index.rows[0].at, index.rows[0].waits) == ("train", False)
