"""Load of this machine: GPUs, CPU, memory, disk, and what a run's processes take of it.

Only of use on the host where the run is: see `is_local`.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from msgspec import Struct, structs

from stackllama_engine.contract.run_dir import Home, Launch, ProcessId
from stackllama_engine.launch.disk import free_room
from stackllama_engine.launch.main_memory import main_memory
from stackllama_engine.launch.nvml import NVML, GpuReading, Nvml, NvmlError
from stackllama_engine.launch.processes import run_processes, usage
from stackllama_engine.launch.timeouts import Asked, UnansweredError

from ..sanitise import one_line
from ..units import size

FIND_SECONDS = 5.0
"""Between two searches for a run's processes, which read the environment of every process of this user."""
NVML_SECONDS = 2.0
"""Seconds to wait for NVML, once; a later answer is used when it comes."""
RETRY_SECONDS = 30.0
"""Between two attempts to open NVML again after it has vanished."""

_TICKS = os.sysconf("SC_CLK_TCK")
_FEW = 2
"""GPUs that are shown one by one in a line."""


class MachineReading(Struct, frozen=True, kw_only=True):
    """The machine at one moment. Bytes and per cent; None where it cannot be told, or not yet.

    Attributes:
        gpus: empty without one; ``note`` says so then.
        cpu: of all CPUs together, since the reading before.
        load: running and waiting processes, averaged over 1, 5 and 15 minutes.
        disk_free: where runs are kept.
        run_memory: resident memory of the run's processes. Pages that they share are counted for each of them.
        run_cpu: their CPU time since the reading before, in per cent of one CPU: may exceed 100.
        run_processes: how many there are.
        run_pids: their pids.
        xids: GPU → its newest Xid error since readings are taken.
        note: what is worth knowing and no error.
        error: what could be read and now cannot.
    """

    gpus: list[GpuReading] = []
    cpu: float | None = None
    memory_used: int = 0
    memory_total: int = 0
    load: tuple[float, float, float] = (0.0, 0.0, 0.0)
    disk_free: int | None = None
    run_memory: int | None = None
    run_cpu: float | None = None
    run_processes: int = 0
    run_pids: frozenset[int] = frozenset()
    xids: dict[int, int] = {}
    note: str | None = None
    error: str | None = None


def is_local(launch: Launch) -> bool:
    """Return whether a run was launched on this host: elsewhere its processes and GPUs are not those seen here."""
    return launch.host == socket.gethostname()


class Machine:
    """Takes readings. Keeps NVML open; use one for as long as something is watched, from one thread at a time.

    Args:
        home: where runs are kept, for the free space there; the default home unless given.
    """

    def __init__(self, home: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._home = home or Home().path
        self._clock = clock
        self._nvml: Nvml | None = None
        self._asked: Asked[tuple[list[GpuReading], list[tuple[int, int]]]] | None = None
        self._xids: dict[int, int] = {}
        self._first = False
        """Whether NVML was asked and has never answered."""
        self._open_at = 0.0
        self._note: str | None = None
        self._error: str | None = None
        self._cpu: tuple[float, float] | None = None
        self._tree = _Tree(clock)

    def read(self, run: Path | None = None) -> MachineReading:
        """Return a reading, with what the processes of the run in this directory take."""
        memory = main_memory()
        self._tree.read(run)
        gpus = self._gpus()
        return MachineReading(
            gpus=gpus,
            cpu=self._cpu_share(),
            memory_used=memory.total - memory.available,
            memory_total=memory.total,
            load=os.getloadavg(),
            disk_free=_free(self._home),
            run_memory=self._tree.memory,
            run_cpu=self._tree.cpu,
            run_processes=len(self._tree.pids),
            run_pids=frozenset(self._tree.pids),
            xids=self._xids.copy(),
            note=self._note,
            error=self._error,
        )

    def close(self) -> None:
        """Shut NVML down."""
        if self._nvml is not None:
            with contextlib.suppress(UnansweredError):  # a driver that hangs keeps it
                NVML.answer(self._nvml.close, NVML_SECONDS)

    def _gpus(self) -> list[GpuReading]:
        if self._note is not None or (self._asked is None and self._clock() < self._open_at):
            return []
        nvml = self._nvml or Nvml(listen=True)
        first, self._nvml = self._nvml is None or self._first, nvml
        try:
            self._asked = self._asked or NVML.ask(lambda: _read(nvml), NVML_SECONDS)
            readings, xids = self._asked.answer(NVML_SECONDS)
        except UnansweredError as error:
            self._first, self._error = first, f"cannot read the GPUs: {error}"
            return []
        except NvmlError as error:
            self._asked, self._first, self._error = None, False, None
            if first:
                self._note = f"no GPU ({one_line(str(error))}); runs use the CPU"
            else:
                self._error = f"cannot read the GPUs: {one_line(str(error))}"
                self._open_at = self._clock() + RETRY_SECONDS
            return []
        self._asked, self._first, self._error = None, False, None
        self._xids |= dict(xids)
        gpus = [structs.replace(gpu, name=one_line(gpu.name)) for gpu in readings]
        if first and not gpus:
            self._note = "no GPU; runs use the CPU"
        return gpus

    def _cpu_share(self) -> float | None:
        times = psutil.cpu_times()  # its cpu_percent remembers one state per thread, and readers come in many
        idle = times.idle + getattr(times, "iowait", 0.0)
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        before, self._cpu = self._cpu, (idle, total)
        if before is None or total <= before[1]:
            return None
        return max(0.0, min(100.0, 100 * (1 - (idle - before[0]) / (total - before[1]))))


def _read(nvml: Nvml) -> tuple[list[GpuReading], list[tuple[int, int]]]:
    """Return the GPUs, and the Xid errors since the last call."""
    if not nvml.is_open:
        nvml.open()
    return nvml.read(), nvml.xids()


class _Tree:
    """The processes of one run: found now and then, measured each time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.memory: int | None = None
        self.cpu: float | None = None
        self.pids: set[int] = set()
        self._clock = clock
        self._run: Path | None = None
        self._known: list[ProcessId] = []
        self._find_at = 0.0
        self._ticks: dict[ProcessId, int] = {}
        self._measured_at: float | None = None

    def read(self, run: Path | None) -> None:
        """Measure the run's processes; one that has ended is left out."""
        now = self._clock()
        if run != self._run or now >= self._find_at:
            if run != self._run:
                self._ticks, self._measured_at = {}, None
            self._run, self._find_at = run, now + FIND_SECONDS
            self._known = run_processes(run) if run is not None else []
        processes = {process: used for process in self._known if (used := usage(process)) is not None}
        self.pids = {process.pid for process in processes}
        self.memory = sum(used.memory for used in processes.values()) if processes else None
        ticks = {process: used.ticks for process, used in processes.items()}
        self.cpu = self._share(ticks, now)
        self._ticks, self._measured_at = ticks, now

    def _share(self, ticks: dict[ProcessId, int], now: float) -> float | None:
        """Return the CPU share of processes measured before: what a new one has spent was spent at another time."""
        if self._measured_at is None or now <= self._measured_at or not self._ticks.keys() & ticks.keys():
            return None
        spent = sum(count - self._ticks[process] for process, count in ticks.items() if process in self._ticks)
        return 100 * spent / _TICKS / (now - self._measured_at)


def _free(path: Path) -> int | None:
    """Return free bytes there, or at its nearest parent that exists."""
    for place in (path, *path.parents):
        try:
            return free_room(place).bytes
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def describe(reading: MachineReading) -> str:
    """Return one line: CPU, memory, what the run takes, what is wrong. GPUs have :mod:`..gpu_lines`."""
    parts: list[str] = []
    if reading.note is not None:
        parts.append("no GPU")
    if reading.cpu is not None:
        parts.append(f"CPU {reading.cpu:.0f} %")
    parts.append(f"RAM {size(reading.memory_used)} of {size(reading.memory_total)}")
    if reading.run_memory is not None:
        cpu = f", {reading.run_cpu:.0f} % CPU" if reading.run_cpu is not None else ""
        count = reading.run_processes
        of = f" in {count} processes" if count > 1 else ""
        parts.append(f"this run {size(reading.run_memory)}{of}{cpu}")
    parts += [text for text in (reading.error,) if text]
    return "  ".join(parts)


def summary_of(gpus: Sequence[GpuReading]) -> str:
    """Return GPUs in one line."""
    return "  ".join(_gpu(gpu) for gpu in gpus) if len(gpus) <= _FEW else _gpus(gpus)


def _gpu(gpu: GpuReading) -> str:
    words = [f"GPU {gpu.index}"]
    if gpu.utilisation is not None:
        words.append(f"{gpu.utilisation} %")
    if gpu.memory_used is not None and gpu.memory_total is not None:
        words.append(f"{size(gpu.memory_used)} of {size(gpu.memory_total)}")
    if gpu.temperature is not None:
        words.append(f"{gpu.temperature} °C")
    if gpu.power is not None:
        limit = f" of {gpu.power_limit:.0f}" if gpu.power_limit is not None else ""
        words.append(f"{gpu.power:.0f}{limit} W")
    return " ".join(words) + (f" ({'; '.join(gpu.slowed)})" if gpu.slowed else "")


def _gpus(gpus: Sequence[GpuReading]) -> str:
    """Return many GPUs in one text: the least and the most busy, the hottest, all memory and power together."""
    words = [f"{len(gpus)} GPUs"]
    if rates := [gpu.utilisation for gpu in gpus if gpu.utilisation is not None]:
        words.append(f"{min(rates)}-{max(rates)} %")
    total = sum(gpu.memory_total or 0 for gpu in gpus)
    if total:
        words.append(f"{size(sum(gpu.memory_used or 0 for gpu in gpus))} of {size(total)}")
    if degrees := [gpu.temperature for gpu in gpus if gpu.temperature is not None]:
        words.append(f"up to {max(degrees)} °C")
    if watts := [gpu.power for gpu in gpus if gpu.power is not None]:
        words.append(f"{sum(watts):.0f} W")
    slowed = {text: None for gpu in gpus for text in gpu.slowed}
    return " ".join(words) + (f" ({'; '.join(slowed)})" if slowed else "")
