"""What the GPUs of a run do, as metrics in ``attempts/NNN/gpus.jsonl``. The supervisor is its only writer.

Each record is a mean over some seconds, at first 5. They become twice as many whenever :data:`RECORDS` were written, so
the file of a run that takes weeks stays at some megabytes. A record is placed at the step it was taken in and the part
of it that had passed, going by the step before, because charts are over steps. A step that takes longer than the one
before nears the next one and never reaches it: a curve goes back where a position does not increase.
"""

import math
import time
from collections.abc import Callable, Collection
from pathlib import Path

from ..contract.events import Event, EventWriter
from ..contract.gpu_metrics import GPU_FILE, gpu_metric
from .nvml import GpuReading

SECONDS = 5.0
"""Between the first records."""
RECORDS = 1440
"""After so many, the time between two doubles."""
_PACE = 60.0  # seconds that the first step is taken to last, until one was done
_DIGITS = 9  # of a position
_EARLY = 0.5  # seconds that a poll may come before its time


class GpuRecorder:
    """Records readings of the GPUs of one attempt. The file is made with the first record.

    Args:
        folder: the attempt's.
        clock: monotonic seconds.
        step: where it begins to record, while the worker loads its model; None: at the first step that the worker
            names, because what is recorded before would replace what an earlier attempt recorded there.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic, *, step: int | None = None) -> None:
        self._path = folder / GPU_FILE
        self._clock = clock
        self._writer: EventWriter | None = None
        self._seconds = SECONDS
        self._written = 0
        self._due = 0.0
        self._step = step
        self._began = clock()  # when that step was done, by our clock
        self._done_at: float | None = None  # the same by the worker's; None: it has named none
        self._pace = 0.0  # seconds that the step before took
        self._position = -math.inf  # of the newest record
        self._readings: list[list[GpuReading]] = []

    def event(self, event: Event) -> None:
        """Take an event of the worker: by its steps records are placed."""
        step, before = event.step, self._step
        if step is None:
            return
        if before is not None and step <= before:
            if self._done_at is None and step == before:
                self._done_at = event.time
            elif event.kind == "progress" and step < before:  # a rollback: it does these steps again
                self._position = -math.inf
                self._start(event, step)
            return
        if before is not None and self._done_at is not None:
            self._pace = max(0.0, event.time - self._done_at) / (step - before)
        self._start(event, step)

    def _start(self, event: Event, step: int) -> None:
        self._step, self._done_at, self._began = step, event.time, self._clock()

    def poll(self, gpus: list[GpuReading], pids: Collection[int]) -> None:
        """Take readings of the run's GPUs, and write a record when one is due.

        Args:
            gpus: the readings; none where NVML did not answer.
            pids: the run's processes.
        """
        if not gpus or self._step is None:
            return
        self._readings.append(gpus)
        now = self._clock()
        if now < self._due - _EARLY:
            return
        late = now - self._due > self._seconds  # the first one, or after a pause: it does not catch up
        self._due = (now if late else self._due) + self._seconds
        self._write(pids)

    def close(self) -> None:
        """Flush and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, pids: Collection[int]) -> None:
        readings, self._readings = self._readings, []
        if self._writer is None:
            try:
                self._writer = EventWriter(self._path)
            except OSError:  # no room for a new file: with the next record
                return
        latest = readings[-1]
        processes = {
            str(gpu.index): {str(pid): held for pid, held in gpu.processes.items() if pid in pids and held}
            for gpu in latest
        }
        data = {"position": self._place(), "seconds": self._seconds, "processes": processes}
        self._writer.write("metrics", step=self._step, metrics=_metrics(readings, pids), data=data)
        self._written += 1
        if self._written % RECORDS == 0:
            self._seconds *= 2

    def _place(self) -> float:
        """Return the newest step and the share of the next one that has passed; always more than before."""
        assert self._step is not None
        share = _share((self._clock() - self._began) / (self._pace or _PACE))
        self._position = max(round(self._step + share, _DIGITS), math.nextafter(self._position, math.inf))
        return self._position


def _share(passed: float) -> float:
    """Return the share of a step that is taken to be done: of the first half exact, then nearing 1 without reaching it.

    Args:
        passed: time since the step before, in times of what that one took.
    """
    return passed if passed <= 0.5 else 1 - 1 / (4 * passed)


def _metrics(readings: list[list[GpuReading]], pids: Collection[int]) -> dict[str, float]:
    """Return mean utilization and power, highest temperature and memory of each GPU."""
    by_gpu: dict[int, list[GpuReading]] = {}
    for gpus in readings:
        for gpu in gpus:
            by_gpu.setdefault(gpu.index, []).append(gpu)
    metrics: dict[str, float] = {}
    for index, taken in by_gpu.items():
        rates = [gpu.utilisation for gpu in taken if gpu.utilisation is not None]
        watts = [gpu.power for gpu in taken if gpu.power is not None]
        degrees = [gpu.temperature for gpu in taken if gpu.temperature is not None]
        used = [gpu.memory_used for gpu in taken if gpu.memory_used is not None]
        held = [gpu.held_by(pids) for gpu in taken]
        values = {
            "utilization": round(sum(rates) / len(rates), 1) if rates else None,
            "power": round(sum(watts) / len(watts), 1) if watts else None,
            "temperature": max(degrees, default=None),
            "memory": max(held) or None,
            "memory_used": max(used, default=None),
        }
        metrics |= {gpu_metric(index, name): value for name, value in values.items() if value is not None}
    return metrics
