"""One measurement: its bound, what was measured, and how both are printed; and how long measuring takes."""

import os
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from msgspec import Struct

KIB, MB = 1024, 1_000_000


class Measurement(Struct, frozen=True, kw_only=True):
    """One bound beside what was measured.

    Attributes:
        name: what is measured.
        wanted: the bound, in words.
        measured: ours.
        bare: the same of a bare Textual application; empty where there is no such thing.
        passed: whether the bound is kept; None for values that are printed for comparison only.
        notes: spread, conditions, what else was measured.
    """

    name: str
    wanted: str
    measured: str
    bare: str = ""
    passed: bool | None = None
    notes: list[str] = []

    def line(self) -> str:
        """Return it for a person."""
        verdict = "    " if self.passed is None else "PASS" if self.passed else "FAIL"
        bare = f"   bare: {self.bare}" if self.bare else ""
        notes = "".join(f"\n       {note}" for note in self.notes)
        return f"{verdict}  {self.name}: {self.measured}   wanted: {self.wanted}{bare}{notes}"


class Sizes(Struct, frozen=True, kw_only=True):
    """How much is measured, and for how long.

    Attributes:
        turns: turns of both sides at a first paint.
        few: turns of measurements that take longer.
        redraws: redraws of each chart.
        rounds: rounds of a trainer's work, alone and watched.
        runs: finished runs of the home that is listed.
        many_runs: runs of the home whose keys are pressed.
        many_events: events of the run that is looked at there.
        log_lines: lines of its log.
        points: of the long chart, whose redraw is compared with one of a thousandth (at least 100) of it.
        events: of the long runs.
        leet_steps: of the run that is opened beside LEET.
        history: points of the live charts.
        work: steps of a trainer's round.
        warm: seconds until the first reads and paints are over.
        watched: seconds that an idle or a live console is watched.
        log_rate: log lines per second.
        log_seconds: length of the flood of log lines.
        presses: keys pressed while it lasts.
        speed: how many times as fast as the clock the hour passes.
    """

    turns: int = 9
    few: int = 3
    redraws: int = 30
    rounds: int = 15
    runs: int = 20
    many_runs: int = 500
    many_events: int = 100_000
    log_lines: int = 1_000_000
    points: int = 1_000_000
    events: int = 1_000_000
    leet_steps: int = 200_000
    history: int = 20_000
    work: int = 250
    warm: float = 6.0
    watched: float = 20.0
    log_rate: float = 50_000.0
    log_seconds: float = 12.0
    presses: int = 6
    speed: float = 20.0


TINY = Sizes(
    turns=1,
    few=1,
    redraws=2,
    rounds=2,
    runs=3,
    many_runs=20,
    many_events=1_000,
    log_lines=2_000,
    points=10_000,
    events=1_000,
    leet_steps=1_000,
    history=100,
    work=2,
    warm=0.5,
    watched=1.0,
    log_rate=500.0,
    log_seconds=4.0,
    presses=1,
    speed=600.0,
)
"""Seconds in all: whether everything still runs. What it measures says nothing."""


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """Return the smallest and the largest of some values as text."""
    return f"{min(values) * scale:.{digits}f} – {max(values) * scale:.{digits}f}"


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def machine() -> str:
    """Describe cores, memory, Python and Textual; no names."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    load = Path("/proc/loadavg").read_text().split()[0]
    return (
        f"{len(os.sched_getaffinity(0))} cores, {pages / 2**30:.0f} GiB, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, textual {version('textual')}, load {load} before the start"
    )


def busy() -> float:
    """Return the share of all cores' time since the last call that was not idle, other processes included."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle, total = fields[3] + fields[4], sum(fields)
    before = _last_busy.copy()
    _last_busy[:] = [idle, total]
    return 1 - (idle - before[0]) / max(1, total - before[1])


_last_busy = [0, 0]


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True, file=sys.stdout)
