"""A live run under the console: charts that grow, a flood of log lines, an hour of it."""

import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import console_marks as marks
from console_measurement import KIB, MB, Measurement, Sizes, median, say, spread
from console_terminal import BARE, BENCHMARKS, CONSOLE, Terminal

from stackllama_engine.contract.stages import Stage

_HOUR, _SETTLED, _WINDOW = 3600.0, 300.0, 60.0
_PIECES = re.compile(
    r"\x1b\[(?P<row>\d+);(?P<column>\d+)H|\x1b\[(?P<right>\d+)C|\x1b\[[0-9;?]*[A-Za-z]|(?P<text>[^\x1b]+)"
)
_DATED = re.compile(r"t=(\d+\.\d+) line")


class Writer:
    """A stand-in for a trainer, in a process of its own; see `console_writer`."""

    def __init__(self, kind: str, home: Path, name: str, *numbers: float, core: int | None = None) -> None:
        argv = [sys.executable, str(BENCHMARKS / "console_writer.py"), kind, str(home), name, *map(str, numbers)]
        if core is not None:
            argv = ["taskset", "-c", str(core), *argv]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.read()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def read(self) -> str:
        """Return its next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the writer has ended")
        return line

    def go(self) -> None:
        """Let it start."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()


def watch(home: Path, name: str, scratch: Path, core: int | None = None) -> Terminal:
    """Start a console on a run, and wait until its first chart is drawn."""
    terminal = Terminal([*CONSOLE, "--home", str(home), "open", name], scratch, core)
    terminal.wait_for(name, *marks.charts(Stage.PPO, 1))
    return terminal


def charts(scratch: Path, sizes: Sizes) -> list[Measurement]:
    """Measure bytes and processor time of a monitor with four long charts that get a point twice a second."""
    seconds = sizes.watched
    rates: dict[str, list[float]] = {"ours": [], "charts": [], "bare": []}
    loads: dict[str, list[float]] = {"ours": [], "bare": []}

    def measure(side: str, terminal: Terminal) -> None:
        start, cpu = time.monotonic(), terminal.cpu()
        time.sleep(seconds)
        rates[side].append(terminal.bytes_since(start) / seconds)
        loads[side].append((terminal.cpu() - cpu) / seconds)
        if side == "ours":
            rates["charts"].append(_chart_bytes(terminal, start) / seconds)

    with Writer("live", scratch / "home", "live", sizes.history, 2, 2):
        for _ in range(sizes.few):
            with watch(scratch / "home", "live", scratch) as terminal:
                terminal.wait_for(*marks.charts(Stage.PPO, 4))
                time.sleep(sizes.warm)  # the first reads and paints are over
                measure("ours", terminal)
            with Terminal([*BARE, "sparklines"], scratch) as terminal:
                time.sleep(sizes.warm)
                measure("bare", terminal)
    rate, alone, load = median(rates["ours"]), median(rates["charts"]), median(loads["ours"])
    return [
        Measurement(
            name=f"four live charts of {sizes.history:,} points, 2 Hz",
            wanted="≤ 2 KiB/s, of which ≤ 1 for the charts, and ≤ 5 % of a core",
            measured=f"{rate / KIB:.2f} KiB/s, charts {alone / KIB:.2f}, {load:.1%}",
            bare=f"four Sparklines {median(rates['bare']) / KIB:.2f} KiB/s, {median(loads['bare']):.1%}",
            passed=rate <= 2 * KIB and alone <= KIB and load <= 0.05,
            notes=[
                f"{sizes.few} turns of {seconds:g} s: {spread(rates['ours'], 1 / KIB, 2)} KiB/s, "
                f"charts {spread(rates['charts'], 1 / KIB, 2)}, {spread(loads['ours'], 100)} %; the whole monitor: "
                "metrics, state line, samples and log change as well"
            ],
        )
    ]


def _chart_bytes(terminal: Terminal, start: float) -> int:
    """Count the bytes that were written, from a moment on, into the rows and columns of the charts."""
    lines = terminal.text().splitlines()
    top = next(row for row, line in enumerate(lines) if "reward  " in line and "▸" in line) + 1
    bottom = next(row for row, line in enumerate(lines) if line.strip() == "log")
    right = lines[top].rindex("│")
    written = b"".join(chunk for moment, chunk in terminal.chunks if moment >= start).decode(errors="replace")
    row = column = count = pending = 0
    for match in _PIECES.finditer(written):
        pending += len(match[0].encode())
        if match["row"]:
            row, column = int(match["row"]), int(match["column"]) - 1
        elif match["right"]:
            column += int(match["right"])
        elif match["text"]:
            count += pending if top <= row <= bottom and column < right else 0
            pending, column = 0, column + len(match["text"])
    return count


def flood(scratch: Path, sizes: Sizes) -> list[Measurement]:
    """Flood the log: how old the newest line on the screen is, and how soon keys are answered."""
    rate, seconds = sizes.log_rate, sizes.log_seconds
    home = scratch / "home"
    with Writer("burst", home, "flood", rate, seconds) as writer, watch(home, "flood", scratch) as terminal:
        time.sleep(sizes.warm / 2)
        quiet = _latencies(terminal, sizes.presses)
        writer.go()
        start = time.monotonic()
        time.sleep(seconds * 0.5)
        calm = time.monotonic()
        cpu = terminal.cpu()
        lags = _lags(terminal, start + 1, calm)
        latencies = _latencies(terminal, sizes.presses)
        written = float(writer.read())
        time.sleep(sizes.warm / 3)
        load = (terminal.cpu() - cpu) / (time.monotonic() - calm)
        note = f"{written:,.0f} lines/s written; {len(lags)} paints; keys without a flood {median(quiet) * 1e3:.0f} ms"
    bare = _bare_flood(scratch, rate, seconds)
    return [
        Measurement(
            name=f"log at {rate:,.0f} lines/s",
            wanted="newest line on the screen ≤ 1 s old, `?` answered in ≤ 200 ms",
            measured=f"at most {max(lags):.2f} s old, `?` in {median(latencies) * 1e3:.0f} ms",
            bare=bare,
            passed=max(lags) <= 1 and median(latencies) <= 0.2,
            notes=[
                note,
                f"{load:.0%} of a core; `?` {spread(latencies, 1e3, 0)} ms; age just before each paint, "
                f"median {median(lags):.2f} s",
            ],
        )
    ]


def _bare_flood(scratch: Path, rate: float, seconds: float) -> str:
    home = scratch / "bare"
    with Writer("burst", home, "flood", rate, seconds) as writer:
        log = home / "runs" / "flood" / "attempts" / "001" / "log.txt"
        with Terminal([*BARE, "log", str(log)], scratch) as terminal:
            terminal.settle(1.0)
            writer.go()
            start, cpu = time.monotonic(), terminal.cpu()
            time.sleep(seconds * 0.5)
            end = time.monotonic()
            load = (terminal.cpu() - cpu) / (end - start)
            lags = _lags(terminal, start + 1, end)
    return f"Log at 5 Hz: {max(lags):.2f} s, {load:.0%} of a core" if lags else "Log at 5 Hz: nothing shown"


def _lags(terminal: Terminal, start: float, stop: float) -> list[float]:
    """Return the age of the newest dated line just before each paint that showed a newer one, seconds."""
    newest, lags = 0.0, list[float]()
    for moment, text in terminal.frames():
        shown = max(map(float, _DATED.findall(text)), default=0.0)
        if shown > newest:
            if newest and start <= moment <= stop:
                lags.append(moment - newest)
            newest = shown
        if moment >= stop:
            break
    if not lags or stop - newest > 2:
        lags.append(stop - max(newest, start))  # it fell silent
    return lags


def _latencies(terminal: Terminal, count: int) -> list[float]:
    """Measure from `?` to the help on the screen, seconds."""
    times: list[float] = []
    for _ in range(count):
        pressed = terminal.send("?")
        times.append(terminal.wait_for(marks.HELP) - pressed)
        terminal.send("q")
        terminal.wait_for(without=marks.HELP)
        time.sleep(0.3)
    return times


def hour(scratch: Path, sizes: Sizes) -> list[Measurement]:
    """Measure resident memory over an hour of live runs, two steps and two log lines per second, sped up."""
    speed = sizes.speed
    kinds = {"metrics every 10th step, as by default": 10, "metrics every step": 1}
    samples: dict[str, list[tuple[float, int]]] = {kind: [] for kind in kinds}
    say(f"       two runs at once, in {_HOUR / speed / 60:.1f} minutes …")
    with ExitStack() as stack:
        terminals: dict[str, Terminal] = {}
        for kind, every in kinds.items():
            stack.enter_context(Writer("live", scratch / "home", f"hour-{every}", 1, 2 * speed, 1, every))
            terminals[kind] = stack.enter_context(watch(scratch / "home", f"hour-{every}", scratch))
        start = time.monotonic()
        while (passed := (time.monotonic() - start) * speed) < _HOUR:
            for kind, terminal in terminals.items():
                samples[kind].append((passed, terminal.rss()))
            time.sleep(min(1.0, _WINDOW / 2 / speed))
    how = "in real time" if speed == 1 else f"{speed:g} times as fast"
    return [_growth(kind, how, values) for kind, values in samples.items()]


def _growth(kind: str, how: str, samples: list[tuple[float, int]]) -> Measurement:
    first, middle, last = (
        median([rss for passed, rss in samples if start <= passed < start + _WINDOW])
        for start in (_SETTLED, _HOUR / 2, _HOUR - _WINDOW)
    )
    return Measurement(
        name=f"memory over an hour of a live run after its first five minutes, {kind}",
        wanted="grows < 10 MB",
        measured=f"{(last - first) / MB:+.1f} MB",
        passed=last - first < 10 * MB,
        notes=[
            f"written {how}: 7,200 steps, as many log lines and samples, 30 metrics",
            f"{first / MB:.0f} MB after 5 minutes, {middle / MB:.0f} after 30, {last / MB:.0f} after 60",
        ],
    )
