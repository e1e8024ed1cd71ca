"""The other side of the benchmark: applications made of what Textual brings, with nothing of ours.

python console_bare.py static               a heading's worth of text
python console_bare.py sparklines           four of Textual's charts, 20,000 points, one more each half second
python console_bare.py log FILE             Textual's Log at the end of a file, read at 5 Hz
"""

import math
import random
import sys
from pathlib import Path

from textual.app import App, ComposeResult
from textual.containers import Grid
from textual.widgets import Log, Sparkline, Static

POINTS = 20_000


class BareStatic(App[None]):
    """One line."""

    def compose(self) -> ComposeResult:
        """The line."""
        yield Static("a bare application")


class BareSparklines(App[None]):
    """Four sparklines that grow."""

    CSS = "Grid { grid-size: 2; } Sparkline { height: 1fr; }"

    def compose(self) -> ComposeResult:
        """Two by two."""
        self._noise = random.Random(0)
        with Grid():
            for index in range(4):
                data = [math.sin(step / 3000 + index) + self._noise.gauss(0, 0.1) for step in range(POINTS)]
                yield Sparkline(data)

    def on_mount(self) -> None:
        """Twice a second."""
        self.set_interval(0.5, self.grow)

    def grow(self) -> None:
        """One more point each."""
        for chart in self.query(Sparkline):
            chart.data = [*(chart.data or ()), self._noise.gauss(0, 1)]


class BareLog(App[None]):
    """The end of a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._offset = 0

    def compose(self) -> ComposeResult:
        """A log without a bound: with one it stood still once that was reached."""
        yield Log()

    def on_mount(self) -> None:
        """Five times a second, from where the file ends now."""
        self._offset = self._path.stat().st_size
        self.set_interval(0.2, self.take)

    def take(self) -> None:
        """What was written since, whole lines."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        if data:
            self.query_one(Log).write_lines(data.decode().splitlines())


def main() -> None:
    """Run the one that is named."""
    match sys.argv[1:]:
        case ["static"]:
            BareStatic().run()
        case ["sparklines"]:
            BareSparklines().run()
        case ["log", path]:
            BareLog(Path(path)).run()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
