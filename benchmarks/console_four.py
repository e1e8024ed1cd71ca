"""Four charts of a run and nothing else, through the console's own application: what the charts alone cost.

python console_four.py HOME RUN
python console_four.py --tiny      a short run for a moment, without a terminal
"""

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / name) for name in ("console", "engine", "benchmarks")]

from console_runs import long_sft  # noqa: E402
from textual.app import ComposeResult  # noqa: E402
from textual.containers import Grid  # noqa: E402
from textual.screen import Screen  # noqa: E402

from stackllama_console.readers.run_reader import RunReader  # noqa: E402
from stackllama_console.tui import app  # noqa: E402
from stackllama_console.tui.app import ConsoleApp, Options  # noqa: E402
from stackllama_console.tui.screen import ConsoleScreen  # noqa: E402
from stackllama_console.tui.widgets.chart import Chart, Curve  # noqa: E402
from stackllama_engine.contract.run_dir import Home, RunDir  # noqa: E402

NAMES = ("loss", "learning_rate", "grad_norm", "mean_token_accuracy")


class FourCharts(ConsoleScreen):
    """The charts of `NAMES`, polled as the monitor polls."""

    DEFAULT_CSS = "FourCharts Grid { grid-size: 2; grid-gutter: 0 1; height: 1fr; }"

    def __init__(self, run: RunDir) -> None:
        super().__init__()
        self._reader = RunReader(run)

    def body(self) -> ComposeResult:
        """Compose them two by two."""
        with Grid():
            for name in NAMES:
                yield Chart(name, id=name)

    def poll(self) -> bool | None:
        """Read what is new."""
        return self._reader.poll() or None

    def render_update(self, update: Any) -> None:
        """Draw it."""
        for name in NAMES:
            chart, series = self.query_one(f"#{name}", Chart), self._reader.series.get(name)
            if chart.curves:
                chart.update()
            elif series is not None:
                chart.set_curves([Curve(name, series)])


class FourChartsApp(ConsoleApp):
    """The console's application with that screen alone."""

    CSS_PATH = Path(app.__file__).with_name("console.tcss")

    def _first_screen(self) -> Screen[Any]:
        return FourCharts(self.home.run(str(self.options.target)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Show them until the terminal is closed."""
    words = sys.argv[1:] if arguments is None else [*arguments]
    if words == ["--tiny"]:
        asyncio.run(_try())
        return 0
    FourChartsApp(Options(home=Home(Path(words[0])), target=words[1])).run()
    return 0


async def _try() -> None:
    with tempfile.TemporaryDirectory() as folder:
        long_sft(Home(Path(folder)), "short", 100, 0.5)
        async with FourChartsApp(Options(home=Home(Path(folder)), target="short")).run_test(size=(120, 40)) as pilot:
            await pilot.pause(1.0)
            print([chart.title for chart in pilot.app.screen.query(Chart) if chart.curves])


if __name__ == "__main__":
    sys.exit(main())
