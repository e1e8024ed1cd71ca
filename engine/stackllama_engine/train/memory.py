"""Memory of this process per phase, in bytes: allocated and reserved on a GPU, resident set everywhere.

The allocator's peaks are reset at each phase, so that one phase's peak does not hide the next one's. A resident
set's peak cannot be reset: of a phase it is what it was at the end, and its peak is the whole process's.
"""

import os
import resource
from pathlib import Path

import torch

_RECORD = 1.01
"""Factor by which a phase must exceed its reported peak to be reported again; a steady run repeats none."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Peaks:
    """Peaks of an attempt and of each of its phases."""

    def __init__(self) -> None:
        self._attempt: dict[str, float] = {}
        self._phases: dict[str, dict[str, float]] = {}
        self._reported: dict[str, dict[str, float]] = {}

    def begin(self) -> None:
        """Begin a phase: the allocator counts anew from what is allocated now."""
        if _on_gpu():
            torch.cuda.reset_peak_memory_stats()

    def end(self, phase: str) -> bool:
        """End a phase; return whether it took more than was reported of it before."""
        _, peaks = self.so_far(phase)
        reported = self._reported.get(phase, {})
        if any(value > _RECORD * reported.get(name, 0.0) for name, value in peaks.items()):
            self._reported[phase] = peaks
            return True
        return False

    def so_far(self, phase: str) -> tuple[dict[str, float], dict[str, float]]:
        """Return the attempt's peaks, and those of its current phase over all the times it was entered."""
        now = measured()
        taken = {name: max(value, self._phases.get(phase, {}).get(name, 0.0)) for name, value in now.items()}
        self._phases[phase] = taken
        highest = now | {"rss": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)}  # Linux counts KiB
        self._attempt = {name: max(value, self._attempt.get(name, 0.0)) for name, value in highest.items()}
        return dict(self._attempt), dict(taken)


def measured() -> dict[str, float]:
    """Measure the resident set now and, on a GPU, the allocator's peaks since their last reset."""
    numbers = {"rss": _rss()}
    if _on_gpu():
        numbers["allocated"] = float(torch.cuda.max_memory_allocated())
        numbers["reserved"] = float(torch.cuda.max_memory_reserved())
    return numbers


def _rss() -> float:
    return float(int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE)


def _on_gpu() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()
