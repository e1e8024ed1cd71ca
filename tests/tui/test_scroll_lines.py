"""Lines that are wrapped: where they break, and what they keep."""

import asyncio

from rich.text import Text
from textual.app import App, ComposeResult

from stackllama_console.tui.widgets.cells import wrap
from stackllama_console.tui.widgets.scroll_lines import ScrollLines

_MACHINE = Text("GPU 0  CPU 41 %  RAM 96.2 GiB of 1.0 TiB  15.3k tokens/s  took 2 h 07 m")
_QUANTITIES = ("41 %", "96.2 GiB", "1.0 TiB", "15.3k tokens/s", "2 h 07 m")


def _wrapped(line: Text, width: int) -> list[str]:
    """Return the rows that a line is shown in."""

    class One(App[None]):
        def compose(self) -> ComposeResult:
            yield ScrollLines()

    async def rows() -> list[str]:
        app = One()
        async with app.run_test(size=(width + 1, 40)) as pilot:  # one column for the scroll bar
            lines = app.query_one(ScrollLines)
            lines.show([line])
            await pilot.pause()
            return [row.plain for row in lines.lines]

    return asyncio.run(rows())


def test_a_line_breaks_between_quantities_never_within_one() -> None:
    for width in (16, 19, 24, 33, 40):
        rows = _wrapped(_MACHINE, width)
        assert max(map(len, rows)) <= width and len(rows) > 1
        assert all(any(quantity in row for row in rows) for quantity in _QUANTITIES), rows
        assert " ".join(" ".join(rows).split()) == " ".join(_MACHINE.plain.split())


def test_a_panels_text_keeps_quantities_together() -> None:
    text = "reserved 47.2–54.3 GiB, on the device 47.6–55.4 GiB"
    assert wrap(text, 48, 3) == ["reserved 47.2–54.3 GiB, on the device", "47.6–55.4 GiB"]


def test_a_quantity_wider_than_the_screen_is_folded() -> None:
    rows = _wrapped(Text("96.2 GiB"), 4)
    assert "".join(rows).replace(" ", "") == "96.2GiB"
