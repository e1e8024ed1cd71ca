"""What a measurement yields, and how it is printed."""

import os
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from msgspec import Struct

KIB, MB = 1024, 1_000_000


class Figure(Struct, frozen=True, kw_only=True):
    """One wanted figure beside what was measured.

    Attributes:
        name: what is measured.
        wanted: the bound, in words.
        measured: ours.
        bare: the same of a bare Textual application; empty where there is no such thing.
        passed: whether the bound is kept; None for figures that stand there for comparison only.
        notes: spread, conditions, what else was seen.
    """

    name: str
    wanted: str
    measured: str
    bare: str = ""
    passed: bool | None = None
    notes: list[str] = []

    def line(self) -> str:
        """For a person."""
        verdict = "    " if self.passed is None else "PASS" if self.passed else "FAIL"
        bare = f"   bare: {self.bare}" if self.bare else ""
        notes = "".join(f"\n       {note}" for note in self.notes)
        return f"{verdict}  {self.name}: {self.measured}   wanted: {self.wanted}{bare}{notes}"


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """Least – most of some values."""
    return f"{min(values) * scale:.{digits}f} – {max(values) * scale:.{digits}f}"


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def machine() -> str:
    """Cores, memory, Python and Textual; no names."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    load = Path("/proc/loadavg").read_text().split()[0]
    return (
        f"{len(os.sched_getaffinity(0))} cores, {pages / 2**30:.0f} GiB, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, textual {version('textual')}, load {load} before the start"
    )


def busy() -> float:
    """Share of all cores' time that was not idle since the last call: by whom, it does not say."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle, total = fields[3] + fields[4], sum(fields)
    before = _seen.copy()
    _seen[:] = [idle, total]
    return 1 - (idle - before[0]) / max(1, total - before[1])


_seen = [0, 0]


def say(text: str) -> None:
    """A line now."""
    print(text, flush=True, file=sys.stdout)
