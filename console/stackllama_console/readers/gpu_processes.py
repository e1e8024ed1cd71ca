"""The processes that hold GPU memory, and the runs that they belong to."""

from collections.abc import Iterable
from pathlib import Path

import psutil
from msgspec import Struct

from stackllama_engine.launch.nvml import GpuReading
from stackllama_engine.launch.process_marks import marked_run

from ..sanitise import one_line

_PROC = Path("/proc")


class GpuProcess(Struct, frozen=True, kw_only=True):
    """One process on one GPU; texts are sanitised.

    Attributes:
        gpu: its index.
        pid: as NVML reports it: in a container that of the outside, where it means nothing.
        memory: bytes that it holds there; None where that is not reported.
        run: id of the run it belongs to; None where it belongs to none, or may not be asked.
        program: its name; empty where no such process is seen from here.
        user: its owner; empty likewise.
    """

    gpu: int
    pid: int
    memory: int | None
    run: str | None = None
    program: str = ""
    user: str = ""


def gpu_processes(gpus: Iterable[GpuReading]) -> tuple[GpuProcess, ...]:
    """Return the processes of every GPU, those of a run first, then by memory."""
    found = [_process(gpu.index, pid, memory) for gpu in gpus for pid, memory in gpu.processes.items()]
    return tuple(sorted(found, key=lambda one: (one.gpu, one.run is None, -(one.memory or 0), one.pid)))


def _process(gpu: int, pid: int, memory: int | None) -> GpuProcess:
    try:
        run = marked_run(_PROC / str(pid))
    except OSError:  # of another user, or ended
        run = None
    try:
        seen = psutil.Process(pid)
        program, user = one_line(seen.name()), one_line(seen.username())
    except psutil.Error:  # ended, or of another pid namespace
        program = user = ""
    name = one_line(run.name) if run else None
    return GpuProcess(gpu=gpu, pid=pid, memory=memory, run=name, program=program, user=user)
