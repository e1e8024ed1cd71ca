"""What the GPUs of a run do, as metrics in ``attempts/NNN/gpus.jsonl``. The supervisor is its only writer.

Each record is a mean over some seconds, at first 5. They become twice as many whenever :data:`RECORDS` were written, so
the file of a run that takes weeks stays at some megabytes. A record is placed at the step it was taken in and the part
of it that had passed, going by the step before, because charts are over steps.
"""

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
_EARLY = 0.5  # seconds that a poll may come before its time


class GpuRecorder:
    """Records readings of the GPUs of one attempt. The file is made with the first record.

    Args:
        folder: the attempt's.
        clock: monotonic seconds.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = folder / GPU_FILE
        self._clock = clock
        self._writer: EventWriter | None = None
        self._seconds = SECONDS
        self._written = 0
        self._due = 0.0
        self._step: int | None = None
        self._began = 0.0  # by our clock, when that step was done
        self._done_at = 0.0  # the same by the worker's
        self._pace = 0.0  # seconds that the step before took
        self._position = 0.0
        self._readings: list[list[GpuReading]] = []

    def event(self, event: Event) -> None:
        """Take an event of the worker: by its steps records are placed."""
        if event.step is None or (self._step is not None and event.step <= self._step):
            return
        if self._step is not None:
            self._pace = max(0.0, event.time - self._done_at) / (event.step - self._step)
        self._step, self._done_at, self._began = event.step, event.time, self._clock()

    def poll(self, gpus: list[GpuReading], pids: Collection[int]) -> None:
        """Take readings of the run's GPUs, and write a record when one is due. Nothing is recorded before step 0.

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
        data = {"position": round(self._place(), 3), "seconds": self._seconds, "processes": processes}
        self._writer.write("metrics", step=self._step, metrics=_metrics(readings, pids), data=data)
        self._written += 1
        if self._written % RECORDS == 0:
            self._seconds *= 2

    def _place(self) -> float:
        """Return the newest step and the share of the next one that has passed; never less than before."""
        assert self._step is not None
        share = min(0.999, (self._clock() - self._began) / self._pace) if self._pace else 0.0
        self._position = max(self._position, self._step + share)
        return self._position


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
