"""The log on the screen: following, keys, search, levels, what is painted, wide characters, hostile text, sizes."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual import on
from textual.app import App, ComposeResult
from textual.color import Color
from textual.filter import Monochrome
from textual.geometry import Region
from textual.pilot import Pilot
from textual.widgets import Input

from stackllama_console.readers import log_file
from stackllama_console.readers.log_search import LogSearch
from stackllama_console.readers.logs import LogReader
from stackllama_console.readers.timeline import RunEvent
from stackllama_console.tui.widgets import log_view
from stackllama_console.tui.widgets.log_panel import LogPanel
from stackllama_console.tui.widgets.log_view import LogView
from stackllama_engine.contract.run_dir import RunDir

HOSTILE = [
    "\x1b]52;c;aGVsbG8=\x07stolen clipboard",
    "\x1b[2J\x1b[Hcleared",
    "\x9b2Jcleared in one character",
    "over\rwritten",
    "\u202egnp.exe\u202c bidi",
    "x [/] [/INST] [@click=app.quit]markup[/]",
    "[bold red]not red[/bold red]",
    "bell\x07 and nul\x00",
    "tab\tand tab",
    "\u0301\u200d\u200b\ufeff nothing to see",
]


class LogApp(App[None]):
    """The widget alone, and what it posted."""

    def __init__(self, view: LogView | LogPanel) -> None:
        super().__init__()
        self.view = view
        self.statuses: list[str] = []

    def compose(self) -> ComposeResult:
        yield self.view

    def on_mount(self) -> None:
        self.view.focus()

    @on(LogView.StatusChanged)
    def _changed(self, event: LogView.StatusChanged) -> None:
        assert event.control is event.view and event.view in (self.view, *self.view.children)
        self.statuses.append(event.view.status)


Check = Callable[[Pilot[None]], Awaitable[None]]


def run(view: LogView | LogPanel, check: Check, size: tuple[int, int] = (40, 10)) -> None:
    async def go() -> None:
        async with LogApp(view).run_test(size=size) as pilot:
            await pilot.pause()
            await check(pilot)

    asyncio.run(go())


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


def append(log: Path, *lines: str) -> None:
    with log.open("a", encoding="utf-8", newline="") as file:
        file.write("".join(f"{line}\n" for line in lines))


def view_of(log: Path, *lines: str, capacity: int = 1000) -> tuple[LogView, LogReader]:
    append(log, *lines)
    reader = LogReader(log, capacity=capacity)
    reader.poll()
    return LogView(reader), reader


def numbered(count: int, first: int = 0) -> list[str]:
    return [f"line {index}" for index in range(first, first + count)]


def shown(view: LogView) -> list[str]:
    """Return what is on the screen, without the gutter."""
    return [view.render_line(y).text[2:].rstrip() for y in range(view.content_size.height)]


async def settled(pilot: Pilot[None]) -> None:
    """Wait for what threads search and read."""
    await pilot.pause()
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()


async def found(pilot: Pilot[None], view: LogView, text: str) -> int:
    """Search, and return how many lines match."""
    view.search(text)
    await settled(pilot)
    return view.match_count


def painted(view: LogView, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Region, ...]]:
    """Record every refresh from now on; an empty tuple is all of it."""
    calls: list[tuple[Region, ...]] = []
    real = view.refresh

    def refresh(*regions: Region, **options: Any) -> Any:
        calls.append(regions)
        return real(*regions, **options)

    monkeypatch.setattr(view, "refresh", refresh)
    return calls


def test_an_empty_log_says_so(log: Path) -> None:
    view = LogView()

    async def check(pilot: Pilot[None]) -> None:
        assert shown(view)[0] == "no lines" and view.following and view.status == ""
        for key in ("g", "G", "j", "k", "v", "n", "N", "pageup", "pagedown", "left", "right", "space", "b", "h", "l"):
            await pilot.press(key)
        assert await found(pilot, view, "x") == 0 and not view.next_match() and not view.previous_match()
        reader = LogReader(log)
        reader.poll()
        view.set_minimum_level("error")
        view.show(reader)
        await pilot.pause()
        assert shown(view)[0] == "no lines at level error or above"

    run(view, check)


def test_it_follows_until_one_scrolls_up(log: Path) -> None:
    view, reader = view_of(log, *numbered(30))

    async def check(pilot: Pilot[None]) -> None:
        assert shown(view) == numbered(10, 20) and view.following
        append(log, "more")
        reader.poll()
        assert view.update() and shown(view)[-1] == "more"
        await pilot.press("k")
        assert not view.following and shown(view) == numbered(10, 20) and view.status == "line 21 of 31"
        append(log, "and more")
        reader.poll()
        view.update()
        await pilot.pause()
        assert shown(view) == numbered(10, 20) and view.status == "line 21 of 32"
        await pilot.press("G")
        assert view.following and shown(view)[-2:] == ["more", "and more"] and view.status == ""

    run(view, check)


def test_keys_scroll(log: Path) -> None:
    view, _ = view_of(log, *numbered(100))

    async def check(pilot: Pilot[None]) -> None:
        for key, first, following in (
            ("g", 0, False),
            ("k", 0, False),
            ("j", 1, False),
            ("down", 2, False),
            ("up", 1, False),
            ("pagedown", 10, False),
            ("space", 19, False),
            ("pageup", 10, False),
            ("b", 1, False),
            ("end", 90, True),
            ("j", 90, True),
            ("pageup", 81, False),
            ("pagedown", 90, True),
            ("home", 0, False),
            ("G", 90, True),
        ):
            await pilot.press(key)
            assert (shown(view)[0], view.following) == (f"line {first}", following), key

    run(view, check)


def test_where_all_fits_up_does_not_stop_following(log: Path) -> None:
    view, reader = view_of(log, "one", "two")

    async def check(pilot: Pilot[None]) -> None:
        await pilot.press("k", "g", "pageup")
        append(log, *numbered(20))
        reader.poll()
        view.update()
        await pilot.pause()
        assert view.following and shown(view)[-1] == "line 19"

    run(view, check)


def test_wheel_scrolls_and_stops_following(log: Path) -> None:
    view, _ = view_of(log, *numbered(100))

    async def check(pilot: Pilot[None]) -> None:
        await pilot._post_mouse_events([_wheel_up()], view)  # pyright: ignore
        await pilot.pause()
        assert shown(view)[0] == "line 87" and not view.following

    run(view, check)


def _wheel_up() -> Any:
    from textual.events import MouseScrollUp

    return MouseScrollUp


def test_only_rows_that_changed_are_painted(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view, reader = view_of(log, *numbered(3))

    async def check(pilot: Pilot[None]) -> None:
        calls = painted(view, monkeypatch)
        for _ in range(5):
            reader.poll()
            assert not view.update()
        await pilot.pause()
        assert calls == []
        append(log, "four", "five")
        reader.poll()
        assert view.update() and calls == [(Region(0, 3, 40, 1), Region(0, 4, 40, 1))]
        await pilot.pause()
        assert shown(view) == [*numbered(3), "four", "five", "", "", "", "", ""]
        append(log, *numbered(30))
        reader.poll()
        view.update()
        await pilot.press("k")
        await pilot.pause()
        calls.clear()
        append(log, "below what is in sight")
        reader.poll()
        assert not view.update() and calls == []
        with log.open("a") as file:
            file.write("50%")
        reader.poll()
        assert not view.update() and calls == []

    run(view, check)


def test_a_progress_bar_is_one_row_in_motion(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view, reader = view_of(log, "one")

    async def check(pilot: Pilot[None]) -> None:
        calls = painted(view, monkeypatch)
        for percent in (10, 20, 30):
            with log.open("a") as file:
                file.write(f"\r{percent}%")
            reader.poll()
            assert view.update() and shown(view)[:2] == ["one", f"{percent}%"]
            await pilot.pause()
        assert calls == [(Region(0, 1, 40, 1),)] * 3

    run(view, check)


def test_lines_that_go_take_nothing_out_of_sight(log: Path) -> None:
    view, reader = view_of(log, *numbered(100), capacity=100)

    async def check(pilot: Pilot[None]) -> None:
        await pilot.press("k", "k")
        before = shown(view)
        assert before[0] == "line 88"
        append(log, *numbered(50, 100))
        reader.poll()
        view.update()
        assert shown(view) == before and view.status == "56% of the log"
        append(log, *numbered(90, 150))
        reader.poll()
        view.update()
        assert shown(view) == numbered(10, 140)  # those that were in sight are gone: the oldest kept
        assert len(view._rows) == 100  # pyright: ignore[reportPrivateUsage]
        await pilot.press("k")
        await settled(pilot)
        assert shown(view) == numbered(10, 139), "read again from the file"

    run(view, check)


def test_search_marks_matches_and_goes_to_the_newest(log: Path) -> None:
    lines = numbered(100)
    lines[5], lines[40], lines[95] = "a needle here", "A NEEDLE there", "needle and needle"
    view, reader = view_of(log, *lines)

    async def check(pilot: Pilot[None]) -> None:
        assert await found(pilot, view, "needle") == 3
        assert view.match_position == 3 and view.following and view.status == "match 3 of 3: needle"
        assert "needle and needle" in shown(view) and " >needle and needle" in view.rows
        await pilot.press("N")
        assert view.match_position == 2 and not view.following and " >A NEEDLE there" in view.rows
        await pilot.press("N")
        assert view.match_position == 1
        await pilot.press("N")
        assert view.match_position == 3
        await pilot.press("n", "n")
        assert view.match_position == 2 and view.status.endswith("match 2 of 3: needle")
        append(log, "a fourth needle")
        reader.poll()
        view.update()
        await settled(pilot)
        assert view.match_count == 4 and view.match_position == 2
        assert await found(pilot, view, "Needle") == 0 and view.status.endswith("no match in the whole log: Needle")
        assert await found(pilot, view, "NEEDLE") == 1
        assert await found(pilot, view, "[.*") == 0
        assert await found(pilot, view, "") == 0 and "match" not in view.status
        assert not any(">" in row[:2] for row in view.rows)

    run(view, check)


def test_search_goes_up_from_what_is_in_sight_first(log: Path) -> None:
    lines = numbered(100)
    lines[5], lines[90] = "needle early", "needle late"
    view, _ = view_of(log, *lines)

    async def check(pilot: Pilot[None]) -> None:
        await pilot.press("g")
        await found(pilot, view, "needle")
        assert view.match_position == 1
        await found(pilot, view, "late")
        assert view.match_position == 1 and "needle late" in shown(view), "the only one, further down"

    run(view, check)


def test_enter_before_a_match_is_found_goes_to_it_when_it_comes(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = numbered(100)
    lines[5] = "a needle"
    append(log, *lines)
    reader = LogReader(log)
    reader.poll()
    gate, step = threading.Event(), LogSearch.step
    monkeypatch.setattr(LogSearch, "step", lambda search: (gate.wait(10), step(search)))

    async def check(pilot: Pilot[None]) -> None:
        panel = pilot.app.query_one(LogPanel)
        view = panel.query_one(LogView)
        panel.show(reader)
        panel.ask()
        await pilot.press(*"needle", "enter")
        assert view.has_focus and view.match_position is None
        await pilot.press("g")  # a key of the log, not a letter of the text
        gate.set()
        await settled(pilot)
        assert view.match_position == 1 and "a needle" in shown(view)
        assert panel.query_one("#log-search", Input).value == "needle"

    run(LogPanel(), check)


def test_one_search_at_a_time_whatever_is_typed_meanwhile(log: Path) -> None:
    view, _ = view_of(log, *numbered(30), "a needle")

    async def check(pilot: Pilot[None]) -> None:
        for text in ("n", "ne", "needle"):
            view.search(text)
        assert len([worker for worker in pilot.app.workers if worker.group == "log-search"]) == 1
        await settled(pilot)
        assert view.status == "match 1 of 1: needle"

    run(view, check)


def test_matches_are_marked_in_the_row(log: Path) -> None:
    view, _ = view_of(log, "x needle y NEEDLE z", "needle")

    async def check(pilot: Pilot[None]) -> None:
        await found(pilot, view, "needle")
        marked = [segment.text for segment in view.render_line(0) if segment.style and segment.style.reverse]
        assert marked == ["needle", "NEEDLE"]
        current = [segment for segment in view.render_line(1) if segment.style and segment.style.underline]
        assert [segment.text for segment in current] == ["needle"]

    run(view, check)


def test_matches_outlive_the_lines_kept(log: Path) -> None:
    view, reader = view_of(log, "the first needle", *["needle"] * 50, capacity=50)

    async def check(pilot: Pilot[None]) -> None:
        assert await found(pilot, view, "needle") == 51
        append(log, *numbered(70))
        reader.poll()
        view.update()
        await settled(pilot)
        assert view.match_count == 51 and view.following
        await pilot.press("n")
        await settled(pilot)
        assert view.match_position == 1 and " >the first needle" in view.rows and not view.following
        assert view.status == "0% of the log, match 1 of 51: needle"
        await pilot.press("G")
        assert view.following and shown(view)[-1] == "line 69"

    run(view, check)


def test_the_whole_file_can_be_scrolled(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "_PAGE", 400)
    view, reader = view_of(log, *numbered(1000), capacity=20)

    async def check(pilot: Pilot[None]) -> None:
        first = 990
        while first > 0:
            await pilot.press("pageup")
            await settled(pilot)
            first = max(0, first - 9)
            assert shown(view) == numbered(10, first)
        await pilot.press("k")
        await settled(pilot)
        assert shown(view) == numbered(10) and view.status == "0% of the log"
        while first < 990:
            await pilot.press("pagedown")
            await settled(pilot)
            first = min(990, first + 9)
            assert shown(view) == numbered(10, first)
        assert view.following and view.status == ""
        await pilot.press("g")
        await settled(pilot)
        append(log, "and more")
        reader.poll()
        view.update()
        assert shown(view) == numbered(10), "what is read stays while the log grows"

    run(view, check)


def test_keys_pressed_while_the_file_is_read_count(log: Path) -> None:
    view, _ = view_of(log, *numbered(1000), capacity=20)

    async def check(pilot: Pilot[None]) -> None:
        view.action_top()
        view.action_scroll(1)
        view.action_page(1)
        assert view.status.endswith("reading …")
        await settled(pilot)
        assert shown(view) == numbered(10, 10)
        view.action_top()
        view.action_end()
        await settled(pilot)
        assert view.following and shown(view) == numbered(10, 990)

    run(view, check)


def test_levels_are_read_from_the_whole_file(log: Path) -> None:
    lines = [f"{'ERROR' if index % 100 == 0 else 'INFO'}:a:{index}" for index in range(1000)]
    view, _ = view_of(log, *lines, capacity=150)

    async def check(pilot: Pilot[None]) -> None:
        view.set_minimum_level("error")
        assert shown(view)[:2] == ["ERROR:a:900", ""]
        await pilot.press("g")
        await settled(pilot)
        assert shown(view) == [f"ERROR:a:{index}" for index in range(0, 1000, 100)]
        assert await found(pilot, view, ":a:") == 10
        view.set_minimum_level("debug")
        await settled(pilot)
        assert shown(view)[0] == "ERROR:a:0" and view.match_count == 1000

    run(view, check)


def test_a_page_of_a_log_that_was_replaced_goes(log: Path) -> None:
    view, reader = view_of(log, *numbered(1000), capacity=20)

    async def check(pilot: Pilot[None]) -> None:
        await pilot.press("g")
        await settled(pilot)
        log.write_text("another\n")
        reader.poll()
        view.update()
        assert shown(view)[0] == "line 982", "what is kept of the one before"
        await pilot.press("G")
        assert shown(view)[-2:] == ["--- the log was restarted ---", "another"]
        log.unlink()
        view._read(log_view._Wish(0))  # pyright: ignore[reportPrivateUsage]
        await settled(pilot)
        assert view.status.endswith("cannot read the log: No such file or directory")

    run(view, check)


def test_long_lines_are_wrapped(log: Path) -> None:
    view, _ = view_of(log, "a" * 38 + "b" * 38 + "c", "漢" * 20 + "x", *numbered(20))

    async def check(pilot: Pilot[None]) -> None:
        await pilot.press("z")
        assert view.following and shown(view) == numbered(10, 10)
        await pilot.press("g")
        assert shown(view)[:6] == ["a" * 38, "b" * 38, "c", "漢" * 19, "漢x", "line 0"]
        assert view.render_line(1).text[:2] == "  "
        for rows, first in ((1, "b" * 38), (1, "c"), (1, "漢" * 19), (-2, "b" * 38), (9, "line 5"), (-9, "b" * 38)):
            view.action_scroll(rows)
            await pilot.pause()
            assert shown(view)[0] == first
        await pilot.press("l")
        assert shown(view)[0] == "b" * 38, "there is nothing to the right"
        await found(pilot, view, "bc")
        assert any(segment.style and segment.style.reverse for segment in view.render_line(1))
        await pilot.press("z")
        assert shown(view)[0] == "a" * 38
        await pilot.press("z", "G")
        assert view.following and shown(view) == numbered(10, 10)

    run(view, check)


def test_a_wrapped_line_longer_than_the_screen_is_scrolled_through(log: Path) -> None:
    view, _ = view_of(log, "".join(f"{index:038d}" for index in range(100)))

    async def check(pilot: Pilot[None]) -> None:
        await pilot.press("z")
        assert shown(view)[-1] == f"{99:038d}"
        await pilot.press("g")
        assert shown(view)[0] == f"{0:038d}"
        await pilot.press("pagedown", "j")
        assert shown(view)[0] == f"{10:038d}"

    run(view, check)


EVENTS = [RunEvent(0.0, 1, 0, "phase: load"), RunEvent(0.0, 1, 14, "checkpoint at step 5")]


def test_events_are_shown_among_the_lines(tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "run").attempt_dir(1)
    folder.mkdir(parents=True)
    append(folder / "log.txt", *numbered(3))
    reader = LogReader(RunDir(tmp_path / "run"))
    reader.poll()
    view = LogView(reader)

    async def check(pilot: Pilot[None]) -> None:
        view.show(reader, EVENTS)
        assert shown(view)[:4] == [*numbered(3), ""]
        await pilot.press("i")
        rows = view.rows[:6]
        assert [row[:2] for row in rows] == ["* ", "  ", "  ", "* ", "  ", "  "]
        assert rows[0].endswith("phase: load") and rows[3].endswith("checkpoint at step 5")
        assert [rows[index][2:] for index in (1, 2, 4)] == numbered(3)
        assert await found(pilot, view, "line 2") == 1
        append(folder / "log.txt", "line 3")
        reader.poll()
        view.update()
        assert shown(view)[5] == "line 3" and view.status == "match 1 of 1: line 2"
        await pilot.press("i")
        assert shown(view)[:5] == [*numbered(4), ""]

    run(view, check)


def test_a_log_without_lines_shows_events(tmp_path: Path) -> None:
    RunDir(tmp_path / "run").attempt_dir(1).mkdir(parents=True)
    reader = LogReader(RunDir(tmp_path / "run"))
    reader.poll()
    view = LogView(reader)

    async def check(pilot: Pilot[None]) -> None:
        assert shown(view)[0] == "no lines"
        view.show(reader, EVENTS)
        assert [row[9:] for row in shown(view)[:2]] == ["phase: load", "checkpoint at step 5"]
        append(RunDir(tmp_path / "run").attempt_dir(1) / "log.txt", "a line")
        reader.poll()
        view.update()
        assert shown(view)[:2] == ["a line", ""]

    run(view, check)


@pytest.mark.parametrize(
    ("pager", "said"),
    [
        ("no-such-pager -R", "PAGER=no-such-pager -R: no such command; set PAGER to one, as in PAGER=less"),
        ("less 'x", "PAGER=less 'x: No closing quotation; set it to a command, as in PAGER=less"),
        ("true", "this terminal cannot be lent to another program"),
    ],
)
def test_pager_that_cannot_be_had_is_named(pager: str, said: str, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGER", pager)
    view, _ = view_of(log, "one")

    async def check(pilot: Pilot[None]) -> None:
        await pilot.press("O")
        assert [notice.message for notice in pilot.app._notifications] == [said]

    run(view, check)


def test_level_filter_hides_less_serious_lines(log: Path) -> None:
    view, reader = view_of(
        log,
        "DEBUG:a:detail",
        "loss 1.0",
        "INFO:a:fine",
        "WARNING:a:hm",
        "ERROR:a:no",
        "Traceback (most recent call last):",
        '  File "x.py"',
        "ValueError: x",
    )

    async def check(pilot: Pilot[None]) -> None:
        assert [row[:1] for row in view.rows[:8]] == ["D", " ", "I", "W", "E", "E", "E", "E"]
        styles = {next(iter(view.render_line(y))).style for y in (0, 2, 3, 4)}
        assert len(styles) == 4
        await pilot.press("v")
        assert view.minimum_level == "info" and shown(view)[0] == "loss 1.0" and view.status == "info and above"
        await pilot.press("v")
        assert shown(view)[:2] == ["WARNING:a:hm", "ERROR:a:no"]
        await pilot.press("v")
        assert view.minimum_level == "error" and shown(view)[0] == "ERROR:a:no"
        append(log, "INFO:a:unseen", "ERROR:a:again")
        reader.poll()
        view.update()
        assert shown(view)[4] == "ERROR:a:again" and await found(pilot, view, "unseen") == 0
        await pilot.press("v")
        assert view.minimum_level == "debug" and "INFO:a:unseen" in shown(view)

    run(view, check)


def test_another_level_keeps_the_place(log: Path) -> None:
    lines = [f"{'ERROR' if index % 10 == 0 else 'INFO'}:a:{index}" for index in range(500)]
    view, _ = view_of(log, *lines)

    async def check(pilot: Pilot[None]) -> None:
        await found(pilot, view, ":200")
        await pilot.press("pagedown")
        view.set_minimum_level("error")
        await pilot.pause()
        assert "ERROR:a:210" in shown(view)
        view.set_minimum_level("debug")
        await pilot.pause()
        assert "ERROR:a:210" in shown(view)

    run(view, check)


def test_long_and_wide_lines_are_cut_at_cells(log: Path) -> None:
    view, _ = view_of(log, "日本語" * 30, "👩‍🚀🇩🇪" * 20, "abcdefghij" * 10, "e\u0301" * 60, "short")

    async def check(pilot: Pilot[None]) -> None:
        for left in range(0, 80, 16):
            for y in range(10):
                strip = view.render_line(y)
                assert strip.cell_length == 40 and sum(segment.cell_length for segment in strip) == 40
            assert view.render_line(2).text[2:] == ("abcdefghij" * 10)[min(left, 142) :].ljust(38)[:38]
            await pilot.press("l")
        assert view.render_line(4).text.strip() == ""
        for _ in range(20):
            await pilot.press("right")
        farthest = view._layout.left  # pyright: ignore[reportPrivateUsage]
        assert farthest == 180 - 38  # the widest line's end is in sight, and no more
        for _ in range(20):
            await pilot.press("h")
        assert shown(view)[4] == "short"

    run(view, check)


def test_half_of_a_wide_character_is_a_blank(log: Path) -> None:
    view, _ = view_of(log, "x" + "漢" * 40)

    async def check(pilot: Pilot[None]) -> None:
        assert view.render_line(0).text == "  x" + "漢" * 18 + " "
        await pilot.press("l")
        assert view.render_line(0).text == "   " + "漢" * 18 + " "

    run(view, check)


def test_hostile_lines_are_plain(log: Path) -> None:
    view, _ = view_of(log, *HOSTILE)

    async def check(pilot: Pilot[None]) -> None:
        for text in HOSTILE:
            view.search(text)
        await found(pilot, view, "markup")
        text = "\n".join(shown(view))
        assert "[@click=app.quit]markup[/]" in text and "[bold red]not red[/bold red]" in text
        for row in shown(view):
            assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 or letter in "\u202e\u202c" for letter in row)
        assert "tab     and tab" in text
        assert isinstance(pilot.app, LogApp)
        assert all("\x1b" not in status for status in pilot.app.statuses)

    run(view, check, (60, 12))


def test_every_segment_has_a_style(log: Path) -> None:
    view, reader = view_of(log, "INFO:a:b", "日本語" * 30, *HOSTILE, *numbered(3))

    async def check(pilot: Pilot[None]) -> None:
        await found(pilot, view, "a")
        await pilot.press("l")
        for y in range(20):
            strip = view.render_line(y)
            assert all(segment.style is not None for segment in strip)
            strip.apply_filter(Monochrome(), Color(0, 0, 0))
        assert reader.lines

    run(view, check, (30, 20))


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 2), (20, 5), (200, 60)])
def test_view_is_drawn_at_every_size(size: tuple[int, int], log: Path) -> None:
    view, reader = view_of(log, *numbered(30), "漢" * 200)

    async def check(pilot: Pilot[None]) -> None:
        view.search("line")
        for key in ("g", "j", "pagedown", "l", "h", "v", "v", "v", "v", "n", "N", "G"):
            await pilot.press(key)
        append(log, "more")
        reader.poll()
        view.update()
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        assert shown(view)[-1] == "more" and len(shown(view)) == 24
        await pilot.resize_terminal(*size)
        await pilot.pause()
        assert len(shown(view)) == size[1]

    run(view, check, size)


def test_another_reader_begins_at_its_end(log: Path) -> None:
    view, reader = view_of(log, *numbered(50))

    async def check(pilot: Pilot[None]) -> None:
        await pilot.press("g")
        view.show(reader)
        assert not view.following
        other_log = log.with_name("other.txt")
        append(other_log, *(f"other {index}" for index in range(50)))
        other = LogReader(other_log)
        other.poll()
        view.show(other)
        await pilot.pause()
        assert view.following and shown(view)[-1] == "other 49" and len(shown(view)) == 10
        view.show(None)
        await pilot.pause()
        assert shown(view)[0] == "no lines"

    run(view, check)


def test_a_flood_is_not_spoken_of_and_all_of_it_is_found(log: Path) -> None:
    view, reader = view_of(log, *numbered(50), capacity=10)

    async def check(pilot: Pilot[None]) -> None:
        assert view.status == ""
        with log.open("a") as file:
            file.writelines(f"more {index}\n" for index in range(50))
        reader.poll()
        view.update()
        assert view.status == ""
        assert await found(pilot, view, "more 3") == 11
        await settled(pilot)
        assert isinstance(pilot.app, LogApp)
        assert pilot.app.statuses[-1] == view.status == "84% of the log, match 11 of 11: more 3"

    run(view, check)


def test_every_binding_has_an_id() -> None:
    ids = [binding.id for binding in LogView.BINDINGS]  # type: ignore[union-attr]
    assert all(name and name.startswith("log.") for name in ids) and len(set(ids)) == len(ids)
    wanted = {"log.top", "log.end", "log.down", "log.up", "log.level", "log.next", "log.previous"}
    assert wanted <= set(ids)
