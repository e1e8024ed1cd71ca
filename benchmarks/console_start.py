"""First paint, output while nothing happens, and opening a run of a million events."""

import re
import time
from pathlib import Path

from console_marks import charts, runs_screen
from console_measurement import KIB, MB, Measurement, Sizes, median, say, spread
from console_runs import file_size, home_of_runs, long_ppo, long_sft
from console_terminal import BARE, CONSOLE, Terminal
from msgspec import Struct

from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage

_LAST = 0.7531
_DRAWN = re.compile("[\u2801-\u28ff]")
"""A cell of a curve."""


def first_paint(scratch: Path, sizes: Sizes) -> list[Measurement]:
    """Measure from exec to the first whole screen: heading and last line here, the one line there."""
    home = home_of_runs(scratch / "home", sizes.runs)
    ours: list[float] = []
    rows: list[float] = []
    bare: list[float] = []
    for turn in range(sizes.turns + 1):  # the first one warms the caches
        with Terminal([*BARE, "static"], scratch) as terminal:
            bare.append(terminal.wait_for("a bare application") - terminal.started)
        with Terminal([*CONSOLE, "--home", str(home.path)], scratch) as terminal:
            ours.append(terminal.wait_for(*runs_screen()) - terminal.started)
            rows.append(terminal.wait_for("ppo-02", "sft-00") - terminal.started)
        if not turn:
            for times in (ours, rows, bare):
                times.clear()
    ratio = median([one / other for one, other in zip(ours, bare, strict=True)])
    return [
        Measurement(
            name="first paint",
            wanted="≤ 1.5 × bare",
            measured=f"{median(ours):.3f} s = {ratio:.2f} ×",
            bare=f"{median(bare):.3f} s",
            passed=ratio <= 1.5,
            notes=[
                f"{sizes.turns} turns; ours {spread(ours, 1, 3)}, bare {spread(bare, 1, 3)} s",
                f"all {sizes.runs} runs on the screen after {median(rows):.3f} s",
            ],
        )
    ]


def idle(scratch: Path, sizes: Sizes) -> list[Measurement]:
    """Count bytes while nothing happens: the list of runs, the monitor of a finished run, the bare application."""
    home = home_of_runs(scratch / "home", sizes.runs)
    measured: list[Measurement] = []
    bare = _quiet([*BARE, "static"], scratch, "a bare application", sizes)
    screens = {
        "runs screen": ([*CONSOLE, "--home", str(home.path)], "ppo-02"),
        "monitor of a finished run": ([*CONSOLE, "--home", str(home.path), "open", "ppo-02"], charts(Stage.PPO, 1)[0]),
    }
    for screen, (argv, mark) in screens.items():
        count, cpu = _quiet(argv, scratch, mark, sizes)
        measured.append(
            Measurement(
                name=f"idle, {screen}",
                wanted="0 bytes/s",
                measured=f"{count} bytes in {sizes.watched:g} s",
                bare=f"{bare[0]} bytes",
                passed=count == 0,
                notes=[f"{cpu:.1%} of a core; bare {bare[1]:.1%}"],
            )
        )
    return measured


def _quiet(argv: list[str], scratch: Path, mark: str, sizes: Sizes) -> tuple[int, float]:
    """Return bytes, and the share of a core, once it has settled."""
    seconds, pause = sizes.watched, sizes.warm / 3
    with Terminal(argv, scratch) as terminal:
        terminal.wait_for(mark)
        terminal.settle(pause)
        if 60 - time.time() % 60 < seconds + 1:  # the list's ages change with the minute, which is an update
            time.sleep(60.5 - time.time() % 60)
            terminal.settle(pause)
        start, cpu = time.monotonic(), terminal.cpu()
        time.sleep(seconds)
        return terminal.bytes_since(start), (terminal.cpu() - cpu) / seconds


def million(scratch: Path, sizes: Sizes) -> list[Measurement]:
    """Measure from exec until the newest value of the first chart is on the screen, and memory at most."""
    home = Home(scratch / "home")
    say(f"       writing two runs of {sizes.events:,} events …")
    runs = {
        "PPO as the engine writes it, 30 metrics every 10th step": long_ppo(home, "ppo-long", sizes.events, _LAST, 10),
        "SFT, 4 metrics every step": long_sft(home, "sft-long", sizes.events, _LAST),
    }
    return _openings(home, runs, scratch, sizes)


def values(scratch: Path, sizes: Sizes) -> list[Measurement]:
    """Measure the same where every step has 30 metrics: 4.3 million values in a million events."""
    home = Home(scratch / "home")
    say(f"       writing a run of {sizes.events:,} events …")
    run = long_ppo(home, "ppo-dense", sizes.events, _LAST, 1)
    return _openings(home, {"PPO, 30 metrics every step": run}, scratch, sizes)


def _openings(home: Home, runs: dict[str, RunDir], scratch: Path, sizes: Sizes) -> list[Measurement]:
    opened: dict[str, list[_Opened]] = {name: [] for name in runs}
    bare: list[int] = []
    for _ in range(sizes.few):
        for name, run in runs.items():
            opened[name].append(_open(home, run, scratch))
        with Terminal([*BARE, "static"], scratch) as terminal:
            terminal.wait_for("a bare application")
            time.sleep(0.3)
            bare.append(terminal.peak_rss())
    measured: list[Measurement] = []
    for name, run in runs.items():
        seconds, cpu, peaks = ([getattr(each, part) for each in opened[name]] for part in ("seconds", "cpu", "peak"))
        measured.append(
            Measurement(
                name=f"opening {sizes.events:,} events ({name}, {file_size(run) / MB:.0f} MB)",
                wanted="≤ 3 s and < 250 MB",
                measured=f"{median(seconds):.2f} s, {max(peaks) / MB:.0f} MB at most",
                bare=f"{max(bare) / MB:.0f} MB",
                passed=median(seconds) <= 3 and max(peaks) < 250 * MB,
                notes=[
                    f"{sizes.few} turns: {spread(seconds, 1, 2)} s, of processor time {spread(cpu, 1, 2)} s, "
                    f"peak {spread(peaks, 1 / MB, 0)} MB"
                ],
            )
        )
    return measured


class _Opened(Struct):
    """Seconds, of processor time as well, and bytes at most."""

    seconds: float
    cpu: float
    peak: int


def _open(home: Home, run: RunDir, scratch: Path) -> _Opened:
    with Terminal([*CONSOLE, "--home", str(home.path), "open", run.id], scratch) as terminal:
        shown = terminal.wait_for(f"{_LAST}"[:5])
        terminal.settle(1.5)
        if f"{_LAST}"[:5] not in terminal.text() or not _DRAWN.search(terminal.text()):
            raise RuntimeError(f"the monitor of {run.id} is not complete:\n{terminal.text()}")
        complete = terminal.chunks[-1][0]
        assert terminal.bytes_since(complete) < 4 * KIB
        return _Opened(max(shown, complete) - terminal.started, terminal.cpu(), terminal.peak_rss())
