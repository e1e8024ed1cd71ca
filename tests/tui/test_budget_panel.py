"""The budget panel: what is drawn at which size, told without colour; its keys; what it does not draw again."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from rich.segment import Segment
from textual import on
from textual.app import App, ComposeResult
from textual.color import Color
from textual.filter import Monochrome
from textual.geometry import Region
from textual.pilot import Pilot

from stackllama_console.readers.budget_view import BudgetView, Memory, Offer, Part
from stackllama_console.sanitise import sanitise
from stackllama_console.tui.widgets.budget_panel import BudgetPanel
from stackllama_engine.budget.rules import Rule

GIB = 1 << 30
RULE = Rule("int8 + LoRA: 1.2–1.4 GB/B", 8 * GIB, 9 * GIB)


def view(**fields: object) -> BudgetView:
    given: dict[str, object] = {
        "model": "meta-llama/Llama-2-7b-hf",
        "parameters": 7_000_000_000,
        "memories": (Memory("A GPU", 24 * GIB, 23 * GIB),),
        "parts": (
            Part("base weights", 7 * GIB),
            Part("adapter", 32 << 20),
            Part("activations", 12 * GIB),
            Part("logits", 5 * GIB),
        ),
        "allocated": 24 * GIB + (32 << 20),
        "reserved": (25 * GIB, 28 * GIB),
        "device": (26 * GIB, 30 * GIB),
        "peak": "loss backward",
        "verdict": "no",
        "reason": "at least 26.0 GiB, 3.0 GiB more than is free",
        "rules": (RULE,),
        "offers": tuple(
            Offer(f"change {n}", n * GIB, f"price {n}", {f"key_{n}": str(n)}, "yes" if n == 1 else "no")
            for n in range(1, 12)
        ),
    }
    return BudgetView(**(given | fields))  # type: ignore[arg-type]


class PanelApp(App[None]):
    """The panel alone, and what it posted."""

    def __init__(self, ascii: bool = False) -> None:
        super().__init__()
        self.panel = BudgetPanel(ascii=ascii)
        self.applied: list[dict[str, str]] = []

    def compose(self) -> ComposeResult:
        yield self.panel

    def on_mount(self) -> None:
        self.panel.focus()

    @on(BudgetPanel.Apply)
    def _apply(self, event: BudgetPanel.Apply) -> None:
        self.applied.append(event.changes)

    def lines(self) -> list[str]:
        return [self.panel.render_line(y).text.rstrip() for y in range(self.panel.size.height)]


def drive(
    steps: Callable[[PanelApp, Pilot[None]], Awaitable[None]], size: tuple[int, int] = (80, 40), ascii: bool = False
) -> PanelApp:
    app = PanelApp(ascii)

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await steps(app, pilot)

    asyncio.run(run())
    return app


def drawn(shown: BudgetView | None, size: tuple[int, int] = (80, 40), ascii: bool = False) -> list[str]:
    found: list[str] = []

    async def steps(app: PanelApp, pilot: Pilot[None]) -> None:
        app.panel.show(shown)
        await pilot.pause()
        found.extend(app.lines())

    drive(steps, size, ascii)
    return found


def line_with(lines: list[str], text: str) -> str:
    return next(line for line in lines if text in line)


def test_all_of_it_is_there_where_there_is_room() -> None:
    lines = drawn(view())
    assert lines[0] == "meta-llama/Llama-2-7b-hf  7 B parameters"
    assert lines[1] == "✗ does not fit  at least 26.0 GiB, 3.0 GiB more than is free"
    assert line_with(lines, "A GPU") == "A GPU  24.0 GiB, 23.0 GiB free"
    assert line_with(lines, "base weights").split() == ["A", "██", "base", "weights", "7.0", "GiB", "29%"]
    assert line_with(lines, "adapter").split() == ["B", "▓▓", "adapter", "32.0", "MiB", "0%"]
    assert "peak: loss backward" in line_with(lines, "allocated 24.0 GiB")
    assert "on the device 26.0–30.0 GiB" in line_with(lines, "reserved 25.0–28.0 GiB")
    assert line_with(lines, "change 1 ").split() == ["1", "✓", "change", "1", "−1.0", "GiB"]
    assert line_with(lines, "change 9").split()[:2] == ["9", "✗"]
    assert not any("change 10" in line for line in lines)
    assert line_with(lines, "price 9").strip() == "price 9"


def test_the_bar_is_to_scale_with_a_marker_at_the_capacity() -> None:
    bar = line_with(drawn(view()), "┃")
    assert bar.index("┃") == round(24 * 80 / 30) - 1
    assert bar.startswith("A█") and bar.count("█") == round(7 * 80 / 30) - 1
    assert bar[round((7 + 1 / 32) * 80 / 30)] == "C" and bar[round((19 + 1 / 32) * 80 / 30)] == "D"
    assert len(bar) == 80 and bar.endswith("╌" * 15)  # up to the pessimistic end
    fits = line_with(drawn(view(device=(8 * GIB, 9 * GIB), parts=(Part("a", 7 * GIB),), allocated=7 * GIB)), "┃")
    assert fits.endswith("┃") and fits.count("×") == 2 and "·" in fits and len(fits) == 80


def test_our_interval_and_the_published_rule_stand_on_the_bars_scale_by_name() -> None:
    lines = drawn(view())
    ours, rule = line_with(lines, "this run"), line_with(lines, "LoRA")
    assert ours.endswith("this run 26.0–30.0 GiB " + ours[ours.index("├") :]) and ours.index("├") == round(26 * 80 / 30)
    assert rule.index("├") == round(8 * 80 / 30) and rule.endswith("int8 + LoRA: 1.2–1.4 GB/B 8.0–9.0 GiB")
    beyond = line_with(drawn(view(rules=(Rule("all of it", 70 * GIB, 70 * GIB),))), "all of it")
    assert beyond.endswith("all of it 70.0 GiB →")


@pytest.mark.parametrize(
    ("verdict", "word"), [("yes", "✓ fits"), ("tight", "! tight"), ("no", "✗ does not fit"), ("unknown", "? unknown")]
)
def test_a_verdict_is_a_glyph_and_a_word(verdict: str, word: str) -> None:
    assert drawn(view(verdict=verdict))[1].startswith(f"{word}  at least")


def test_equal_gpus_share_a_bar_and_different_ones_have_their_own() -> None:
    lines = drawn(view(memories=(Memory("A", 24 * GIB, 9 * GIB), Memory("A", 24 * GIB, 20 * GIB))))
    assert "2 × A  24.0 GiB, 9.0 GiB free" in lines and sum("┃" in line for line in lines) == 1
    lines = drawn(view(memories=(Memory("A", 24 * GIB, 9 * GIB), Memory("B", 16 * GIB, 9 * GIB))))
    assert sum("┃" in line for line in lines) == 2


def test_the_gpu_that_the_verdict_is_about_is_drawn_and_named() -> None:
    """Eight equal cards, seven of them empty: the run is refused for the eighth, so that one is shown."""
    free = [80 * GIB] * 7 + [5 * GIB]
    same = tuple(Memory("A", 80 * GIB, each, f"GPU {index}") for index, each in enumerate(free))
    lines = drawn(view(memories=same, parts=()), (80, 8))
    assert "8 × A  80.0 GiB, GPU 7: 5.0 GiB free" in lines and sum("┃" in line for line in lines) == 1
    assert line_with(lines, "┃").count("×") >= 45, "75 of its 80 GiB are taken"
    other = (*same[:1], Memory("B", 80 * GIB, 5 * GIB, "GPU 1"))
    lines = drawn(view(memories=other, parts=()), (80, 8))
    assert "GPU 1 B  80.0 GiB, 5.0 GiB free" in lines and line_with(lines, "┃").count("×") >= 45
    assert "GPU 0 A  80.0 GiB, 80.0 GiB free" in drawn(view(memories=same[:1], parts=()))


def test_38_by_8_keeps_verdict_bar_estimate_rule_and_a_way_out() -> None:
    lines = drawn(view(), (38, 8))
    assert len(lines) == 8 and all(len(line) <= 38 for line in lines)
    assert lines[0].startswith("…") and lines[0].endswith("7 B parameters")
    assert lines[1].startswith("✗ does not fit")
    assert any("┃" in line for line in lines)
    assert "26.0–30.0 GiB" in line_with(lines, "this run") and "8.0–9.0 GiB" in line_with(lines, "LoRA")
    assert line_with(lines, "change 1").strip().startswith("1") and "−1.0 GiB" in line_with(lines, "change 1")


@pytest.mark.parametrize("size", [(120, 50), (60, 16), (38, 8), (30, 6), (20, 5), (10, 3), (4, 2), (1, 1)])
def test_every_size_is_filled_exactly_and_crashes_nowhere(size: tuple[int, int]) -> None:
    views = [
        view(),
        view(memories=(), parts=(), device=(0, 0), allocated=0, offers=()),
        view(device=(400 * GIB, 500 * GIB)),
        view(parts=(Part("tiny", 1),), allocated=1, device=(1, 2)),
        view(parts=tuple(Part(f"part {n}", GIB) for n in range(40)), allocated=40 * GIB),
        view(memories=tuple(Memory(f"gpu {n}", 24 * GIB, 0) for n in range(16))),
        BudgetView(),
    ]

    async def steps(app: PanelApp, pilot: Pilot[None]) -> None:
        for one in [*views, None]:
            app.panel.show(one)
            await pilot.pause()
            strips = [app.panel.render_line(y) for y in range(app.panel.size.height)]
            assert all(strip.cell_length == app.panel.size.width for strip in strips)
            assert all(segment.style is not None for strip in strips for segment in strip)

    drive(steps, size)


def test_hostile_texts_are_plain_and_sanitised() -> None:
    bad = "\x1b]52;c;aGVsbG8=\x07 x [/] [@click=app.quit]y[/] \x9b2J\u202e 漢字\nz"
    lines = drawn(
        view(
            model=bad,
            reason=bad,
            peak=bad,
            note=bad,
            caveat=bad,
            rules=(Rule(bad, GIB, 2 * GIB),),
            memories=(Memory(bad, 24 * GIB, GIB),),
            parts=(Part(bad, GIB),),
            offers=(Offer(bad, GIB, bad, {}),),
        ),
        (120, 40),
    )
    assert all(sanitise(line) == line for line in lines)
    assert sum("x [/] [@click=app.quit]y[/] 漢字 z" in line for line in lines) >= 8


def test_ascii_draws_with_ascii_alone_and_letters_tell_the_parts() -> None:
    lines = drawn(view(model="a·b", note="no GPU – here"), ascii=True)
    assert all(line.isascii() for line in lines)
    bar = next(line for line in lines if line.startswith("AAA"))
    assert "CCC" in bar and "DDD" in bar and "|" in bar
    assert line_with(lines, "does not fit").startswith("x ")


def test_without_colours_it_says_the_same() -> None:
    async def steps(app: PanelApp, pilot: Pilot[None]) -> None:
        app.panel.show(view())
        await pilot.pause()
        for y in range(app.panel.size.height):
            strip = app.panel.render_line(y)
            segments: list[Segment] = Monochrome().apply(list(strip), Color.parse("black"))
            assert "".join(segment.text for segment in segments) == strip.text

    drive(steps)


def test_each_number_takes_its_change() -> None:
    async def steps(app: PanelApp, pilot: Pilot[None]) -> None:
        app.panel.show(view())
        await pilot.press(*"123456789")
        await pilot.pause()
        assert app.applied == [{f"key_{n}": str(n)} for n in range(1, 10)]
        app.panel.show(view(offers=view().offers[:2]))
        await pilot.press("3", "0", "2")
        await pilot.pause()
        assert app.applied[9:] == [{"key_2": "2"}]
        assert not app.panel.apply(3) and not app.panel.apply(0) and app.panel.apply(1)
        app.panel.show(None)
        await pilot.press("1")
        await pilot.pause()

    assert len(drive(steps).applied) == 11


def test_every_binding_has_an_id_and_says_what_it_does() -> None:
    bindings = [binding for binding in BudgetPanel.BINDINGS if not isinstance(binding, tuple)]
    assert [binding.id for binding in bindings] == [f"budget.apply_{n}" for n in range(1, 10)]
    assert all(binding.description for binding in bindings)


def test_an_equal_view_draws_nothing_and_another_only_its_lines() -> None:
    async def steps(app: PanelApp, pilot: Pilot[None]) -> None:
        app.panel.show(view())
        await pilot.pause()
        asked: list[Region] = []
        app.panel.refresh = lambda *regions, **_: asked.extend(regions) or app.panel  # type: ignore[method-assign]
        app.panel.show(view())
        assert asked == []
        app.panel.show(view(reason="another"))
        assert [region.y for region in asked] == [1]

    drive(steps)


def test_another_size_is_another_layout() -> None:
    async def steps(app: PanelApp, pilot: Pilot[None]) -> None:
        app.panel.show(view())
        await pilot.pause()
        assert any("price 1" in line for line in app.lines())
        await pilot.resize_terminal(38, 8)
        await pilot.pause()
        assert len(app.lines()) == 8 and not any("price 1" in line for line in app.lines())

    drive(steps)


def test_38_columns_name_a_rule_whole_without_its_explanation() -> None:
    lines = drawn(view(), (36, 40))
    assert "int8 + LoRA 8.0–9.0 GiB" in line_with(lines, "LoRA") and "…" not in line_with(lines, "LoRA")


@pytest.mark.parametrize("width", [30, 36, 60])
def test_a_size_that_only_the_name_tells_is_called_so_at_every_width(width: int) -> None:
    head = drawn(view(model="some-organisation/model-70b-chat", parameters=70 * 10**9, guessed=True), (width, 40))[0]
    assert "≈ 70 B" in head and head.endswith(", from its name")


@pytest.mark.parametrize(
    ("together", "said"),
    [
        ("no", "None of these is enough alone, nor all together"),
        ("yes", "None of these is enough alone, all together are"),
        ("tight", "None of these is enough alone, all together may be"),
        ("unknown", "None of these is enough alone"),
    ],
)
@pytest.mark.parametrize("height", [14, 40])
def test_where_no_change_is_enough_one_line_says_so(together: str, said: str, height: int) -> None:
    offers = tuple(Offer(f"change {n}", GIB, "", {f"key_{n}": "1"}, "no") for n in range(1, 4))
    lines = drawn(view(offers=offers, together=together), (80, height))
    assert said in lines and "change 3" in "".join(lines) and "then it fits" not in "".join(lines)
    assert not any("None of these" in line for line in drawn(view(), (80, height)))


def test_unknown_is_a_verdict_of_its_own_in_glyph_word_and_colour() -> None:
    strange = view(
        verdict="unknown",
        reason="at least 612.8 GiB, which is more than there is",
        least=True,
        parameters=657_970_000_000,
        parts=(),
        allocated=0,
        reserved=(0, 0),
        device=(0, 0),
        rules=(),
        offers=(),
        caveat="architecture `deepseek_v3` is not known",
    )
    lines = drawn(strange)
    assert lines[0].endswith("at least 658 B parameters")
    assert lines[1] == "? unknown  at least 612.8 GiB, which is more than there is"
    assert "architecture `deepseek_v3` is not known" in "\n".join(lines)
    assert not [line for line in lines if "fits" in line or "├" in line]
    looks: dict[str, str] = {}

    async def steps(app: PanelApp, _pilot: Pilot[None]) -> None:
        for name in ("yes", "tight", "no", "unknown", "text"):
            looks[name] = str(app.panel.get_component_rich_style(f"budget--{name}"))

    drive(steps)
    assert len(set(looks.values())) == len(looks)
