"""Pages of charts follow the terminal's size, and so does the heading that counts them."""

from pathlib import Path

import pytest
from tests.tui.app_kit import Shown, run_app
from tests.tui.screens_kit import isolate, make_run, write_metrics

from stackllama_engine.contract.stages import Stage


def test_the_heading_counts_the_pages_of_the_size_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = isolate(tmp_path, monkeypatch)
    write_metrics(make_run(home, Stage.SFT, "one"), {f"mine/{name}": [1.0, 2.0] for name in "abcdef"})

    async def script(shown: Shown) -> None:
        await shown.reaches("MonitorScreen")
        await shown.shows("mine/a", "charts 1 of 3")
        for size, there in (((20, 5), ""), ((300, 80), "mine/f"), ((20, 5), ""), ((80, 24), "charts 1 of 3")):
            await shown.pilot.resize_terminal(*size)
            await shown.until(lambda size=size: shown.app.size == size)
            await shown.shows(there)

    run_app(home, script, target="one")
