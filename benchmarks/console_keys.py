"""From a key to the settled screen: the list of 500 runs, a run of 100,000 events, its log of a million lines."""

import math
import re
import time
from pathlib import Path

import console_marks as marks
from console_measurement import Measurement, Sizes, median, say, spread
from console_runs import home_of_runs, long_ppo, make_old
from console_terminal import CONSOLE, Mark, Terminal
from msgspec import Struct

from stackllama_engine.contract.stages import Stage

_QUIET = 0.4
"""Seconds without output after which the screen has settled; what reads files looks at them twice a second."""
_LINE = 113
_RARE = "needle"
_NAMES = {"\r": "enter", "\t": "tab", "\x1b[6~": "page down", "\x1b[5~": "page up", "\x7f": "backspace"}
_ESCAPE = "\x1b"
"""Not measured: Textual waits a tenth of a second for what may follow it."""

LIST = ("j", "j", "k", "G", "g", "\x1b[6~", "\x1b[5~", "/", "p", "p", "o", "\x7f", _ESCAPE, "G", "g")
CHARTS = ("]", "]", "[", "1", "1", "2", "2", "\t", "+", "h", "0", "y", "y", "s", "c", "l")
PANELS = ("d", _ESCAPE, "6", "6", "?", _ESCAPE)
LOG = ("5", "k", "\x1b[5~", "g", "j", "\x1b[6~", "G", "v", "v", "v", "v", "z", "z", "i", "i", "5")
SEARCH = ("/", *_RARE, "\r", "N", "n", _ESCAPE)


class Pressed(Struct):
    """What keys took, by place and name: seconds until all was drawn, and of processor time."""

    seconds: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}

    def press(self, terminal: Terminal, where: str, key: str, *result: Mark) -> float:
        """Press a key; return the seconds until all was drawn. With a result, what comes after it does not count."""
        cpu = terminal.cpu_exact()
        pressed = terminal.send(key)
        first = terminal.wait_for(*result) if result else 0.0
        settled = _settled(terminal, pressed)
        if key != _ESCAPE:
            name = f"{where} {_NAMES.get(key, key)}"
            self.seconds.setdefault(name, []).append((first or settled) - pressed)
            if not result:  # a search continues in the background
                self.cpu.setdefault(name, []).append(terminal.cpu_exact() - cpu)
        return settled - pressed


def keys(scratch: Path, sizes: Sizes) -> list[Measurement]:
    """Press the keys of the list, the monitor and the log, one after another, and wait for each until all is drawn."""
    say(f"       writing {sizes.many_runs} runs, {sizes.many_events:,} events, {sizes.log_lines:,} lines …")
    home = home_of_runs(scratch / "home", sizes.many_runs - 1, steps=10)
    run = long_ppo(home, "long", sizes.many_events, 0.5, 10)
    _write_log(run.attempt_dir(1) / "log.txt", sizes.log_lines)
    make_old(home)
    pressed = Pressed()
    searched: list[float] = []
    with Terminal([*CONSOLE, "--home", str(home.path)], scratch) as terminal:
        terminal.wait_for(*marks.runs_screen())
        terminal.settle(2)
        for key in LIST * sizes.few:
            pressed.press(terminal, "list", key)
    with Terminal([*CONSOLE, "--home", str(home.path), "open", run.id], scratch) as terminal:
        terminal.wait_for(*marks.charts(Stage.PPO, 4))
        terminal.settle(2)
        for _ in range(sizes.few):
            for where, sequence in (("charts", CHARTS), ("panels", PANELS), ("log", LOG)):
                for key in sequence:
                    pressed.press(terminal, where, key)
            for index, key in enumerate(SEARCH):
                typed = _RARE[:index] if key in _RARE else ""
                took = pressed.press(terminal, "search", key, *(_result(typed) if typed else ()))
                searched += [took] if typed else []
    at_99, cpu_99 = _at_99(pressed.seconds), _at_99(pressed.cpu)
    count = sum(map(len, pressed.seconds.values()))
    return [
        Measurement(
            name=f"key to settled screen: {sizes.many_runs} runs, {sizes.many_events:,} events, "
            f"{sizes.log_lines:,} lines",
            wanted="p99 ≤ 100 ms",
            measured=f"p99 {at_99 * 1e3:.0f} ms of {count} keys; of processor time p99 {cpu_99 * 1e3:.0f} ms",
            passed=at_99 <= 0.1,
            notes=[
                f"slowest: {_slowest(pressed.seconds)} ms",
                f"by processor time: {_slowest(pressed.cpu)} ms",
                f"a letter of a search counts until its result is on the screen; all of the log was searched within "
                f"{median(searched) * 1e3:.0f} ms ({spread(searched, 1e3, 0)})",
            ],
        )
    ]


def _result(typed: str) -> tuple[Mark, Mark]:
    """Return what is seen when a text has been found: how far the search is, and the line with the match."""
    return re.compile(rf"(?:\d|matches): {typed}(?!\w)"), re.compile(rf"[ IW]>.*{typed}", re.IGNORECASE)


def _at_99(values: dict[str, list[float]]) -> float:
    every = sorted(value for some in values.values() for value in some)
    return every[math.ceil(0.99 * len(every)) - 1]


def _slowest(values: dict[str, list[float]]) -> str:
    worst = sorted(values.items(), key=lambda item: -max(item[1]))[:8]
    return ", ".join(f"{key} {median(some) * 1e3:.0f} ({max(some) * 1e3:.0f})" for key, some in worst)


def _settled(terminal: Terminal, pressed: float) -> float:
    """Wait until nothing more comes; return when the last byte did."""
    while True:
        last = max(pressed, terminal.chunks[-1][0])
        if time.monotonic() - last >= _QUIET:
            return last
        time.sleep(0.01)


def _write_log(path: Path, lines: int) -> None:
    """Write a log whose rare word stands in a handful of its lines."""
    rare = {lines // 7, lines // 2, lines - lines // 5}
    with path.open("w") as file:
        for line in range(lines):
            level = "WARNING" if line % 1000 == 0 else "INFO"
            word = f"{_RARE} " if line in rare else ""
            file.write(
                f"{level} step {line} {word}loss={line * 7919 % 30011 / 1e4:.4f} lr=1e-5".ljust(_LINE)[:_LINE] + "\n"
            )
