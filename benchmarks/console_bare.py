"""The other side of the benchmark: applications made of what Textual brings, with nothing of ours.

python console_bare.py static               a heading's worth of text
python console_bare.py sparklines           four of Textual's charts, 20,000 points, one more each half second
python console_bare.py log FILE             Textual's Log at the end of a file, read at 5 Hz
python console_bare.py --tiny               each of them for a moment, without a terminal
"""

import asyncio
import math
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from textual.app import App, ComposeResult
from textual.containers import Grid
from textual.widgets import Log, Sparkline, Static

POINTS = 20_000


class BareStatic(App[None]):
    """One line."""

    def compose(self) -> ComposeResult:
        """Yield the line."""
        yield Static("a bare application")


class BareSparklines(App[None]):
    """Four sparklines that grow."""

    CSS = "Grid { grid-size: 2; } Sparkline { height: 1fr; }"

    def compose(self) -> ComposeResult:
        """Yield them two by two."""
        self._noise = random.Random(0)
        with Grid():
            for index in range(4):
                data = [math.sin(step / 3000 + index) + self._noise.gauss(0, 0.1) for step in range(POINTS)]
                yield Sparkline(data)

    def on_mount(self) -> None:
        """Grow twice a second."""
        self.set_interval(0.5, self.grow)

    def grow(self) -> None:
        """Append a point to each."""
        for chart in self.query(Sparkline):
            chart.data = [*(chart.data or ()), self._noise.gauss(0, 1)]


class BareLog(App[None]):
    """The end of a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._offset = 0

    def compose(self) -> ComposeResult:
        """Yield a log without a bound: one with a bound stops changing once that is reached."""
        yield Log()

    def on_mount(self) -> None:
        """Read five times a second, from where the file ends now."""
        self._offset = self._path.stat().st_size
        self.set_interval(0.2, self.poll)

    def poll(self) -> None:
        """Append what was written since, whole lines."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        if data:
            self.query_one(Log).write_lines(data.decode().splitlines())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the application that is named; 2 where none is."""
    match sys.argv[1:] if arguments is None else [*arguments]:
        case ["static"]:
            BareStatic().run()
        case ["sparklines"]:
            BareSparklines().run()
        case ["log", path]:
            BareLog(Path(path)).run()
        case ["--tiny"]:
            asyncio.run(_try_all())
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


async def _try_all() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "log.txt")
        file.write_bytes(b"before\n")
        for app in (BareStatic(), BareSparklines(), BareLog(file)):
            async with app.run_test(size=(120, 40)) as pilot:
                with file.open("ab") as log:
                    log.write(b"one line\n")
                await pilot.pause(0.6)
            print(f"{type(app).__name__} ran")


if __name__ == "__main__":
    sys.exit(main())
