"""First paint, silence when nothing happens, and opening a run of a million events."""

import time
from pathlib import Path

from console_figures import KIB, MB, Figure, median, say, spread
from console_runs import file_size, home_of_runs, long_ppo, long_sft
from console_terminal import BARE, CONSOLE, Terminal

from stackllama_engine.contract.run_dir import Home, RunDir

_LAST = 0.7531
_EVENTS = 1_000_000


def first_paint(scratch: Path, turns: int) -> list[Figure]:
    """From exec to the first whole screen: heading and footer here, the one line there."""
    home = home_of_runs(scratch / "home")
    ours: list[float] = []
    rows: list[float] = []
    bare: list[float] = []
    for turn in range(turns + 1):  # the first one warms the caches
        with Terminal([*BARE, "static"], scratch) as terminal:
            bare.append(terminal.wait_for("a bare application") - terminal.started)
        with Terminal([*CONSOLE, "--home", str(home.path)], scratch) as terminal:
            ours.append(terminal.wait_for("runs", "compare", "quit") - terminal.started)
            rows.append(terminal.wait_for("ppo-02", "sft-00") - terminal.started)
        if not turn:
            for times in (ours, rows, bare):
                times.clear()
    ratio = median([one / other for one, other in zip(ours, bare, strict=True)])
    return [
        Figure(
            name="first paint",
            wanted="≤ 1.5 × bare",
            measured=f"{median(ours):.3f} s = {ratio:.2f} ×",
            bare=f"{median(bare):.3f} s",
            passed=ratio <= 1.5,
            notes=[
                f"{turns} turns; ours {spread(ours, 1, 3)}, bare {spread(bare, 1, 3)} s",
                f"all 20 runs on the screen after {median(rows):.3f} s",
            ],
        )
    ]


def idle(scratch: Path, seconds: float) -> list[Figure]:
    """Bytes while nothing happens: the list of runs, the monitor of a finished run, the bare application."""
    home = home_of_runs(scratch / "home")
    figures: list[Figure] = []
    bare = _quiet([*BARE, "static"], scratch, "a bare application", seconds)
    places = {
        "runs screen": ([*CONSOLE, "--home", str(home.path)], "ppo-02"),
        "monitor of a finished run": ([*CONSOLE, "--home", str(home.path), "open", "ppo-02"], "reward"),
    }
    for place, (argv, mark) in places.items():
        count, cpu = _quiet(argv, scratch, mark, seconds)
        figures.append(
            Figure(
                name=f"idle, {place}",
                wanted="0 bytes/s",
                measured=f"{count} bytes in {seconds:g} s",
                bare=f"{bare[0]} bytes",
                passed=count == 0,
                notes=[f"{cpu:.1%} of a core; bare {bare[1]:.1%}"],
            )
        )
    return figures


def _quiet(argv: list[str], scratch: Path, mark: str, seconds: float) -> tuple[int, float]:
    """Bytes, and the share of a core, once it has settled."""
    with Terminal(argv, scratch) as terminal:
        terminal.wait_for(mark)
        terminal.settle(2.0)
        if 60 - time.time() % 60 < seconds + 1:  # the list's ages change with the minute, which is news
            time.sleep(60.5 - time.time() % 60)
            terminal.settle(2.0)
        start, cpu = time.monotonic(), terminal.cpu()
        time.sleep(seconds)
        return terminal.bytes_since(start), (terminal.cpu() - cpu) / seconds


def million(scratch: Path, turns: int) -> list[Figure]:
    """From exec until the newest value of the first chart is on the screen; memory then and at most."""
    home = Home(scratch / "home")
    say(f"       writing three runs of {_EVENTS:,} events …")
    runs = {
        "PPO as the engine writes it, 30 metrics every 10th step": long_ppo(home, "ppo-long", _EVENTS, _LAST, 10),
        "SFT, 4 metrics every step": long_sft(home, "sft-long", _EVENTS, _LAST),
        "PPO, 30 metrics every step": long_ppo(home, "ppo-dense", _EVENTS, _LAST, 1),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, list[int]] = {name: [] for name in runs}
    bare: list[int] = []
    for _ in range(turns):
        for name, run in runs.items():
            seconds, peak = _open(home, run, scratch)
            times[name].append(seconds)
            peaks[name].append(peak)
        with Terminal([*BARE, "static"], scratch) as terminal:
            terminal.wait_for("a bare application")
            time.sleep(0.3)
            bare.append(terminal.peak_rss())
    return [
        Figure(
            name=f"opening {_EVENTS:,} events ({name}, {file_size(run) / MB:.0f} MB)",
            wanted="≤ 3 s and < 250 MB",
            measured=f"{median(times[name]):.2f} s, {max(peaks[name]) / MB:.0f} MB at most",
            bare=f"{max(bare) / MB:.0f} MB",
            passed=median(times[name]) <= 3 and max(peaks[name]) < 250 * MB,
            notes=[f"{turns} turns: {spread(times[name], 1, 2)} s, peak {spread(peaks[name], 1 / MB, 0)} MB"],
        )
        for name, run in runs.items()
    ]


def _open(home: Home, run: RunDir, scratch: Path) -> tuple[float, int]:
    with Terminal([*CONSOLE, "--home", str(home.path), "open", run.id], scratch) as terminal:
        shown = terminal.wait_for(f"{_LAST}"[:5])
        terminal.settle(1.5)
        if f"{_LAST}"[:5] not in terminal.text() or "no data yet" in terminal.text():
            raise RuntimeError(f"the monitor of {run.id} is not complete:\n{terminal.text()}")
        complete = terminal.chunks[-1][0]
        assert terminal.bytes_since(complete) < 4 * KIB
        return max(shown, complete) - terminal.started, terminal.peak_rss()
