"""The chart widget: every key, what is sent, gaps, log axis, plain characters, sizes, hostile labels, words."""

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.geometry import Region
from textual.pilot import Pilot

from stackllama_console.readers.series import Series
from stackllama_console.tui.widgets.chart import Chart, Curve

PAYLOADS = [
    "\x1b]52;c;aGVsbG8=\x07stolen clipboard",
    "\x1b[2J\x1b[Hcleared",
    "\x9b2Jcleared in one character",
    "over\rwritten\nand more",
    "\u202egnp.exe\u202c bidi",
    "x [/] [/INST] [@click=app.quit]markup[/]",
    "bell\x07 and nul\x00",
    "日本語のラベル",
    "👨‍👩‍👧 🇩🇪 e\u0301",
    "",
]
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class ChartApp(App[None]):
    CSS = "Chart { width: 80; height: 20; }"

    def __init__(self, chart: Chart) -> None:
        super().__init__()
        self.chart = chart

    def compose(self) -> ComposeResult:
        yield self.chart


def series(values: Iterable[float | None], first: int = 1) -> Series:
    made = Series("loss")
    for step, value in enumerate(values, start=first):
        made.append(step, value)
    return made


def ramp(count: int = 1000) -> Series:
    return series(index / 100 for index in range(count))


def run(chart: Chart, check: Callable[[Pilot[None]], Awaitable[None]], size: tuple[int, int] = (80, 20)) -> None:
    async def go() -> None:
        async with ChartApp(chart).run_test(size=size) as pilot:
            await pilot.pause()
            await check(pilot)

    asyncio.run(go())


def screen(chart: Chart) -> str:
    return "\n".join(chart.rows)


def test_an_empty_chart_says_so() -> None:
    chart = Chart("loss")

    async def check(pilot: Pilot[None]) -> None:
        assert "no data yet" in screen(chart)
        for key in ("y", "s", "+", "-", "0", "left", "right", "home", "end", "c", "h", "l"):
            await pilot.press(key)
        assert "no data yet" in screen(chart)
        assert chart.summary() == "no data yet"
        chart.set_curves([Curve("loss", series([math.nan, None]))])
        assert chart.summary() == "loss: all 2 values NaN or infinite"

    run(chart, check)


@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_chart_of_gaps_alone_says_so_and_where_they_are(ascii_only: bool) -> None:
    chart = Chart("loss", ascii=ascii_only)
    chart.set_curves([Curve("loss", series([math.nan, None, math.inf], first=5))])

    async def check(pilot: Pilot[None]) -> None:
        chart.styles.width, chart.styles.height = 38, 9
        await pilot.pause()
        for log in ("", "log"):
            chart.look.log = bool(log)
            chart.update(force=True)
            assert plain(chart.rows[0]).endswith("! 3 not finite" + (log and (" | log" if ascii_only else " · log")))
            assert [plain(row) for row in chart.rows[1:-2] if row.strip()] == ["all 3 values NaN or infinite"]
            assert chart.rows[-2].count("!") == 3
            assert chart.rows[-1].split() == ["5", "6", "7"]
        chart.set_curves([Curve("loss", series([math.nan], first=5))])
        assert "the only value is NaN or infinite" in screen(chart)
        assert chart.rows[-2].index("!") == chart.rows[-1].index("5") == 19

    run(chart, check)


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("log", [False, True])
def test_a_single_point_is_marked_in_the_middle_between_labels(ascii_only: bool, log: bool) -> None:
    chart = Chart("loss", ascii=ascii_only)
    chart.set_curves([Curve("loss", series([4.2581], first=7))])
    chart.look.log = log

    async def check(pilot: Pilot[None]) -> None:
        chart.styles.width, chart.styles.height = 38, 9
        await pilot.pause()
        mark = "*" if ascii_only else "●"
        [(y, row)] = [(y, row) for y, row in enumerate(chart.rows) if mark in row]
        assert row.index(mark) == chart.rows[-1].index("7") == 22
        assert chart.rows[-1].split() == ["7"]
        labels = [float(row.split()[0]) for row in chart.rows[1:-2] if row[:5].strip()]
        assert len(labels) >= 2
        assert labels[-1] < 4.2581 < labels[0]
        assert 1 < y < len(chart.rows) - 3
        assert plain(chart.rows[0]).startswith(("> loss 4.2581", "▸ loss 4.2581"))

    run(chart, check)


def test_single_points_of_several_curves_are_all_marked() -> None:
    chart = Chart("loss")
    chart.set_curves(
        [
            Curve("train", series([1.3], first=7)),
            Curve("held out", series([1.4], first=7)),
            Curve("gone", series([math.nan], first=7)),
        ]
    )

    async def check(pilot: Pilot[None]) -> None:
        plot = "".join(chart.rows[2:-2])
        assert (plot.count("●"), plot.count("▲"), plot.count("■")) == (1, 1, 0)
        assert plain(chart.rows[1]) == "● train 1.3 ▲ held out 1.4 ■ gone -"
        assert chart.rows[-2].count("!") == 1

    run(chart, check)


def test_axes_labels_and_the_last_value_are_drawn() -> None:
    chart = Chart("loss")
    chart.set_curves([Curve("loss", ramp())])

    async def check(pilot: Pilot[None]) -> None:
        rows = chart.rows
        assert len(rows) == 20
        assert all(len(row) == 80 for row in rows)
        assert rows[0].split() == ["▸", "loss", "9.99"]
        assert [row.split()[0] for row in rows if "┤" in row] == ["10", "8", "6", "4", "2", "0"]
        assert {row.index("┤") for row in rows if "┤" in row} == {6}
        assert rows[-2].startswith("      └┬")
        assert rows[-1].split() == ["0", "200", "400", "600", "800", "1k"]
        assert "⡠" in screen(chart)

    run(chart, check)


def test_only_what_changed_is_refreshed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ramp(800)
    data.append(1000, 3.0)
    chart = Chart("loss")
    chart.set_curves([Curve("loss", data)])
    seen: list[Region] = []

    async def check(pilot: Pilot[None]) -> None:
        await pilot.pause()
        original = chart.refresh

        def refresh(*regions: Region, **options: Any) -> Chart:
            assert regions, "a whole refresh sends everything"
            seen.extend(regions)
            return original(*regions, **options)

        monkeypatch.setattr(chart, "refresh", refresh)
        assert chart.update() is False
        assert seen == []
        before = chart.rows
        data.append(900, 5.0)  # the run was resumed at 900
        data.append(1000, 3.5)
        assert chart.update() is True
        await pilot.pause()
        changed = {
            (x, y)
            for y, (new, old) in enumerate(zip(chart.rows, before, strict=True))
            for x in range(80)
            if new[x] != old[x]
        }
        covered = {
            (x, y) for region in seen for x in range(region.x, region.right) for y in range(region.y, region.bottom)
        }
        assert changed
        assert changed <= covered
        assert len(covered) < 300  # of 1600
        assert shown(pilot, 20) == list(chart.rows)
        monkeypatch.undo()

    run(chart, check)


def shown(pilot: Pilot[None], height: int) -> list[str]:
    """Return what the compositor has on the screen."""
    strips = pilot.app.screen._compositor.render_strips()
    return [strip.text for strip in strips[:height]]


def test_log_axis_handles_zero_and_less_and_says_so() -> None:
    chart = Chart("loss")
    chart.set_curves([Curve("loss", series([0.0, -3.0, 0.001, 0.1, 10.0, 1.0]))])

    async def check(pilot: Pilot[None]) -> None:
        await pilot.press("y")
        assert "log, 0 and less at the bottom" in chart.rows[0]
        labels = [row.split()[0] for row in chart.rows if "┤" in row]
        assert labels == ["10", "1", "0.1", "0.01", "0.001"]
        chart.set_curves([Curve("loss", series([0.0, -3.0]))])
        assert "nothing above zero" in screen(chart)
        await pilot.press("y")
        assert "log" not in chart.rows[0]
        chart.set_curves([Curve("loss", series([1.0, 2.0]))])
        await pilot.press("y")
        assert chart.rows[0].rstrip().endswith("log")

    run(chart, check)


def test_smoothing_cycles_over_a_band_that_keeps_the_spike() -> None:
    data = series([1.0] * 500 + [9.0] + [1.0] * 499)
    chart = Chart("loss")
    chart.set_curves([Curve("loss", data)])

    async def check(pilot: Pilot[None]) -> None:
        raw = screen(chart)
        for weight in (0.6, 0.9, 0.97):
            await pilot.press("s")
            assert chart.weight == weight
            assert f"smooth {weight:g}" in chart.rows[0]
            assert any("⠁" <= cell <= "⣿" for cell in "".join(chart.rows[2:8]))
        await pilot.press("s")
        assert screen(chart) == raw

    run(chart, check)


def test_zoom_pan_reset_and_follow() -> None:
    data = ramp()
    chart = Chart("loss")
    chart.set_curves([Curve("loss", data)])

    def window() -> tuple[float, float]:
        return chart.view.window((1, 1000))

    async def check(pilot: Pilot[None]) -> None:
        whole = screen(chart)
        assert window() == (0, 1000)
        await pilot.press("plus")
        assert window() == (500, 1000)
        await pilot.press("equals_sign", "left")
        assert window() == (687.5, 937.5)
        assert not chart.view.following
        assert "zoom, held" in chart.rows[0]
        data.append(1001, 1.0)
        chart.update()
        assert window() == (687.5, 937.5)
        data.append(1000, 9.99)
        await pilot.press("l")
        assert chart.view.following
        await pilot.press("h", "minus")
        assert window() == (500, 1000)
        await pilot.press("home")
        assert window() == (0, 500)
        await pilot.press("end")
        assert chart.view.following
        await pilot.press("0")
        assert chart.view.width is None
        await pilot.press("minus", "left", "right")
        assert chart.view.width is None
        assert screen(chart) == whole

    run(chart, check)


def test_a_following_window_moves_on_by_quarters() -> None:
    data = ramp()
    chart = Chart("loss")
    chart.set_curves([Curve("loss", data)])

    async def check(pilot: Pilot[None]) -> None:
        await pilot.press("+", "+")
        windows = [chart.view.window((1, last)) for last in (1000, 1001, 1062, 1063)]
        assert windows == [(750, 1000), (812.5, 1062.5), (812.5, 1062.5), (875, 1125)]

    run(chart, check)


def test_the_cursor_reads_every_curve_and_moves() -> None:
    chart = Chart("reward")
    chart.set_curves([Curve("a", series(float(i) for i in range(1, 11))), Curve("b", series([5.0, math.nan, 7.0]))])

    async def check(pilot: Pilot[None]) -> None:
        await pilot.press("c")
        assert "at step 10" in chart.rows[0]
        assert chart.rows[1].split() == ["●", "a", "10", "▲", "b", "-"]
        await pilot.press("left", "h")
        assert "at step 8" in chart.rows[0]
        await pilot.press("home")
        assert "at step 1" in chart.rows[0]
        assert chart.rows[1].split() == ["●", "a", "1", "▲", "b", "5"]
        await pilot.press("right")
        assert chart.rows[1].split() == ["●", "a", "2", "▲", "b", "nan"]
        assert screen(chart).count("│") > 16  # more than the value axis has
        await pilot.press("end", "l")
        assert "at step 10" in chart.rows[0]
        await pilot.press("c")
        assert "at step" not in chart.rows[0]

    run(chart, check)


def test_the_window_goes_with_the_cursor_and_zooms_around_it() -> None:
    chart = Chart("loss")
    chart.set_curves([Curve("loss", ramp())])

    async def check(pilot: Pilot[None]) -> None:
        await pilot.press("c", "home", "plus")
        assert chart.view.window((1, 1000)) == (0, 500)
        await pilot.press("end")
        start, stop = chart.view.window((1, 1000))
        assert start <= 1000 <= stop
        assert "9.99" in chart.rows[0]

    run(chart, check)


def test_gaps_are_marked_at_their_steps_and_counted() -> None:
    values: list[float | None] = [1.0] * 1000
    values[499] = math.nan
    chart = Chart("loss")
    chart.set_curves([Curve("loss", series(values))])

    async def check(pilot: Pilot[None]) -> None:
        assert "! 1 not finite" in chart.rows[0]
        axis = chart.rows[-2]
        assert axis.count("!") == 1
        assert axis.index("!") == 7 + int(500 / 1000 * 73)

    run(chart, check)


def plain(row: str) -> str:
    return " ".join(row.split())


def test_several_curves_bear_marks_shown_in_the_legend() -> None:
    chart = Chart("compare")
    chart.set_curves([Curve(f"run {i}", series([float(i)] * 300)) for i in range(8)])

    async def check(pilot: Pilot[None]) -> None:
        plot = "".join(chart.rows[3:-2])
        assert all(mark in plot for mark in "●▲■◆○△")
        assert plain(chart.rows[1]) == "● run 0 0 ▲ run 1 1 ■ run 2 2 ◆ run 3 3"
        assert plain(chart.rows[2]) == "○ run 4 4 △ run 5 5 ● run 6 6 ▲ run 7 7"
        chart.styles.width = 30
        await pilot.pause()
        assert plain(chart.rows[2]) == "■ run 2 2 ◆ run 3 3 +4"  # so many did not fit

    run(chart, check)


def test_values_lose_digits_before_labels_are_cut() -> None:
    chart = Chart("seconds")
    names = {"rollout": 0.38481, "score": 0.32642, "update": 1.2345}
    chart.set_curves([Curve(name, series([value] * 9)) for name, value in names.items()])

    async def check(pilot: Pilot[None]) -> None:
        for size, wanted in {
            (38, 9): ["● rollout 0.3848 ▲ score 0.3264", "■ update 1.2345"],
            (34, 9): ["● rollout 0.385 ▲ score 0.326", "■ update 1.23"],
            (24, 9): ["● rol… 0.38", "▲ sco… 0.33 ■ upd… 1.2"],
            (54, 8): ["● rollout 0.385 ▲ score 0.326 ■ update 1.23"],
            (38, 8): ["● rol… 0.38 ▲ sco… 0.33 ■ upd… 1.2"],
        }.items():
            chart.styles.width, chart.styles.height = size
            await pilot.pause()
            assert [plain(row) for row in chart.rows[1 : 1 + len(wanted)]] == wanted, size

    run(chart, check)


def test_labels_that_begin_alike_are_told_apart_by_their_ends() -> None:
    chart = Chart("reward")
    chart.set_curves([Curve(f"ppo-2026-11-24-seed-{i}", series([i / 7] * 9)) for i in range(8)])

    async def check(pilot: Pilot[None]) -> None:
        assert chart.rows[1].split()[1::3] == [f"ppo-2…seed-{i}" for i in range(4)]
        chart.styles.width = 38
        await pilot.pause()
        assert chart.rows[1].split()[1::3] == ["ppo-…d-0", "ppo-…d-1"]
        assert chart.rows[2].split()[-1] == "+4"
        chart.set_curves([Curve("same", series([1.0])), Curve("same", series([2.0])), Curve("", series([3.0]))])
        chart.styles.width = 20
        await pilot.pause()
        assert chart.rows[1].split() == ["●", "same", "1", "▲", "same", "2"]

    run(chart, check)


def test_flags_are_shortened_and_never_left_out() -> None:
    chart = Chart("loss")
    policy = series([math.sin(i) / 100 for i in range(64)])
    chart.set_curves([Curve("policy", policy), Curve("value", series([0.4] * 64))])

    def flags() -> str:
        return chart.rows[0].partition("loss")[2].strip()

    async def check(pilot: Pilot[None]) -> None:
        await pilot.press("c", "y", "s")
        assert flags() == "at step 64 · smooth 0.6 · log, 0 and less at the bottom"
        wanted = {54: "at step 64 · smooth 0.6 · log≤0", 42: "at step 64 · smooth 0.6 · log≤0"}
        wanted |= {38: "@64 · smooth 0.6 · log≤0", 26: "@64 sm 0.6 log≤0"}
        for width, text in wanted.items():
            for height in (6, 9, 20):
                chart.styles.width, chart.styles.height = width, height
                await pilot.pause()
                assert flags().endswith(text) if height > 6 else all(x in flags() for x in ("64", "0.6", "log≤0")), (
                    chart.rows
                )
        await pilot.press("plus", "left")
        policy.append(65, math.nan)
        chart.styles.width = 38
        await pilot.pause()
        assert flags() == "@63 !1 sm 0.6 log≤0 held"

    run(chart, check, size=(80, 24))


def test_a_single_curve_with_much_to_say_has_its_value_beneath_the_title() -> None:
    chart = Chart("gradient norm")
    chart.set_curves([Curve("gradient norm", ramp(64))])

    async def check(pilot: Pilot[None]) -> None:
        chart.styles.width = 38
        await pilot.press("c", "y", "s")
        await pilot.pause()
        assert plain(chart.rows[0]) == "▸ gradient norm @64 · sm 0.6 · log≤0"
        assert chart.rows[1].split() == ["0.615"]
        chart.styles.height = 7
        await pilot.pause()
        assert chart.rows[0].split()[-4:] == ["@64", "sm", "0.6", "log≤0"]
        assert "gradi" in chart.rows[0]
        assert "0.615" in chart.rows[0]

    run(chart, check)


def test_a_reference_line_is_in_the_range_and_in_the_legend() -> None:
    chart = Chart("GPU memory", unit="bytes")
    chart.set_curves([Curve("GPU memory", series([40 * 2.0**30] * 50))])
    chart.set_reference("predicted", 70 * 2.0**30)

    async def check(pilot: Pilot[None]) -> None:
        assert "┄┄ predicted 70.0 GiB" in chart.rows[0]
        assert [row.split()[0:2] for row in chart.rows if "┄┄┄┄┄┄" in row] == [["70", "GiB"]]
        chart.set_reference("predicted", None)
        assert "┄" not in screen(chart)
        with pytest.raises(ValueError, match="not finite"):
            chart.set_reference("predicted", math.nan)

    run(chart, check)


def test_new_curves_leave_nothing_of_the_old_axis_or_reference() -> None:
    fresh, reused = Chart("loss"), Chart("loss")
    fresh.set_curves([Curve("loss", series([10.0, 25.0]))])
    reused.set_curves([Curve("memory", series([10.0, 40.0]))])

    async def check_fresh(pilot: Pilot[None]) -> None:
        assert [row.split()[0] for row in fresh.rows if "┤" in row] == ["25", "20", "15", "10"]

    async def check(pilot: Pilot[None]) -> None:
        reused.set_reference("predicted", 50.0)
        await pilot.pause()
        assert "┄┄ predicted 50" in reused.rows[0]
        reused.set_curves([Curve("loss", series([10.0, 25.0]))])
        await pilot.pause()
        assert "┄" not in screen(reused)
        assert reused.rows[1:] == fresh.rows[1:]
        reused.set_curves([Curve("loss", series([10.0, 25.0]))], reference=("predicted", 50.0))
        reused.set_reference("", None)
        await pilot.pause()
        assert reused.rows[1:] == fresh.rows[1:]
        with pytest.raises(ValueError, match="not finite"):
            reused.set_curves([], reference=("predicted", math.inf))

    run(fresh, check_fresh)
    run(reused, check)


def test_the_value_axis_of_a_low_chart_has_labels() -> None:
    chart = Chart("loss")
    chart.set_curves([Curve("loss", series([1.38, 1.25, 1.12]))])

    async def check(pilot: Pilot[None]) -> None:
        for height in (6, 7, 8, 9):
            chart.styles.height = height
            await pilot.pause()
            assert [row.split()[0] for row in chart.rows if "┤" in row] == ["1.4", "1.2"]

    run(chart, check, size=(40, 20))


def test_plain_mode_draws_in_ascii_alone() -> None:
    chart = Chart("compare", ascii=True)
    chart.set_curves(
        [
            Curve("one", series(math.sin(i / 30) for i in range(500))),
            Curve("two with a label too long to be shown in full", series([None, *(i / 250 for i in range(499))])),
        ]
    )
    chart.set_reference("limit", 1.5)

    async def check(pilot: Pilot[None]) -> None:
        for keys in ([], ["s"], ["y"], ["plus", "c"]):
            await pilot.press(*keys)
            assert screen(chart).isascii(), screen(chart)
        await pilot.press("0", "y", "s", "s", "s", "c")
        plot = "".join(chart.rows[2:-2])
        assert "*" in plot
        assert "o" in plot
        assert "-" * 20 in plot

    run(chart, check)


@pytest.mark.parametrize("ascii_only", [False, True])
def test_any_size_and_back(ascii_only: bool) -> None:
    chart = Chart("a rather long title", ascii=ascii_only)
    chart.set_curves([Curve("one", ramp()), Curve("two", series([1.0, math.nan, 3.0]))])
    chart.set_reference("limit", 5.0)

    async def check(pilot: Pilot[None]) -> None:
        await pilot.press("c", "s")
        for width, height in [(20, 5), (1, 1), (2, 1), (1, 9), (3, 3), (120, 2), (11, 7), (28, 6), (80, 20)]:
            chart.styles.width, chart.styles.height = width, height
            await pilot.pause()
            chart.update(force=True)
            await pilot.pause()
            assert [len(row) for row in chart.rows] == [width] * height
            for y in range(height):
                strip = chart.render_line(y)
                assert strip.cell_length == width
                assert all(segment.style is not None for segment in strip)
        assert "at step 1,000" in chart.rows[0]

    run(chart, check)


def test_a_chart_hidden_while_data_came_is_right_when_shown() -> None:
    data = ramp(10)
    chart = Chart("loss")
    chart.set_curves([Curve("loss", data)])

    async def check(pilot: Pilot[None]) -> None:
        chart.display = False
        await pilot.pause()
        data.append(11, 77.0)
        chart.update()
        chart.display = True
        await pilot.pause()
        chart.update()
        await pilot.pause()
        assert "77" in shown(pilot, 20)[0]

    run(chart, check)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_labels_are_plain_and_harmless(payload: str) -> None:
    chart = Chart(payload)
    chart.set_curves([Curve(payload, ramp(50)), Curve(payload, ramp(40))])
    chart.set_reference(payload, 3.0)

    async def check(pilot: Pilot[None]) -> None:
        for size in (80, 30, 9):
            chart.styles.width = size
            await pilot.pause()
            strips = [chart.render_line(y) for y in range(20)]
            assert [strip.cell_length for strip in strips] == [size] * 20
            text = "".join(strip.text for strip in strips)
            assert not UNSAFE.search(text)
            assert not any((segment.style and segment.style.meta) for strip in strips for segment in strip)
        assert not UNSAFE.search(chart.summary().replace("\n", ""))
        assert len(chart.summary().split("\n")) == 2

    run(chart, check)


def test_absurd_values_do_not_crash() -> None:
    chart = Chart("loss")
    wild = Series("loss")
    for step, value in ((-1e308, 1.7e308), (0.0, -1.7e308), (1.0, 5e-324), (1e308, 0.0)):
        wild.append(step, value)

    async def check(pilot: Pilot[None]) -> None:
        chart.set_curves([Curve("loss", wild)])
        for key in ("y", "s", "+", "c", "left", "home", "right", "end", "-", "0", "y"):
            await pilot.press(key)
        assert chart.summary().startswith("loss: first 1.7e308, last 0,")

    run(chart, check)


def test_focus_is_seen_without_colour() -> None:
    chart = Chart("loss")
    chart.set_curves([Curve("loss", ramp())])

    async def check(pilot: Pilot[None]) -> None:
        assert chart.rows[0].startswith("▸ loss")
        pilot.app.set_focus(None)
        await pilot.pause()
        assert chart.rows[0].startswith("  loss")
        chart.focus()
        await pilot.pause()
        assert shown(pilot, 1)[0].startswith("▸ loss")

    run(chart, check)


@pytest.mark.parametrize("theme", ["textual-light", "ansi-dark", "nord"])
def test_a_theme_changes_the_colours(theme: str) -> None:
    chart = Chart("loss")
    chart.set_curves([Curve("loss", ramp())])

    def colours() -> set[str]:
        return {str(segment.style) for y in range(20) for segment in chart.render_line(y)}

    async def check(pilot: Pilot[None]) -> None:
        before = colours()
        pilot.app.theme = theme
        await pilot.pause()
        assert colours() != before

    run(chart, check)


def test_every_binding_has_an_id_and_says_what_it_does() -> None:
    bindings = [binding for binding in Chart.BINDINGS if isinstance(binding, Binding)]
    ids = [binding.id for binding in bindings]
    assert len(ids) == len(set(ids)) == len(Chart.BINDINGS)
    assert all(binding.id and binding.id.startswith("chart.") and binding.description for binding in bindings)


def test_the_summary_says_it_in_words() -> None:
    chart = Chart("loss")
    chart.set_curves(
        [
            Curve("down", series(float(i) for i in range(20, 0, -1))),
            Curve("still", series([1.0, math.nan, 2.0, *[1.5] * 40])),
            Curve("[bold]up\nand away", series([1.0, 2.0, 4.0])),
        ]
    )
    assert chart.summary().split("\n") == [
        "down: first 20, last 1, min 1, max 20, mean of the last tenth 1.5, falling, second half against first; "
        "steps 1 to 20, 20 points",
        "still: first 1, last 1.5, min 1, max 2, mean of the last tenth 1.5, flat, second half against first, "
        "1 not finite; steps 1 to 43, 42 points",
        "[bold]up and away: first 1, last 4, min 1, max 4, rising from first to last; steps 1 to 3, 3 points",
    ]


def test_few_points_are_not_made_into_a_trend() -> None:
    chart = Chart("loss")
    chart.set_curves([Curve("loss", series([4.2581, 4.2107, 4.1893, 4.1933]))])
    assert chart.summary() == (
        "loss: first 4.2581, last 4.1933, min 4.1893, max 4.2581, falling from first to last; steps 1 to 4, 4 points"
    )
    chart.set_curves([Curve("loss", series([4.2581], first=7))])
    assert chart.summary() == "loss: one point, 4.2581 at step 7"
    chart.set_curves([Curve("loss", series([4.2581, math.nan]))])
    assert chart.summary() == "loss: one point, 4.2581 at step 1, 1 not finite"


def test_a_trend_is_told_from_many_points_and_what_was_compared_is_said() -> None:
    chart = Chart("loss")

    def words(values: Iterable[float]) -> str:
        chart.set_curves([Curve("loss", series(values))])
        return chart.summary()

    falling = [20 - i + i % 2 * 3 for i in range(18)]
    assert falling[-1] > falling[-2]
    assert "falling, second half against first; steps" in words(falling)
    assert "mean of the last tenth" not in words(falling)
    valley = [abs(i - 700) / 100 for i in range(1000)]
    assert "falling, second half against first; lately rising, last tenth against the one before;" in words(valley)
    assert "flat, second half against first" in words([(i * 7919) % 101 / 101 for i in range(60)])  # noise
    assert "flat, second half against first; lately flat" in words([0.0] * 100)
    assert "rising, second half against first" in words([-1.7e308] * 10 + [1.7e308] * 10)
