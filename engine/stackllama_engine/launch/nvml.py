"""The GPUs of this machine by NVML, without torch: utilization, errors, processes that hold their memory.

Functions and bits: https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html. What a GPU or a driver
does not report (temperature of a virtual GPU, processes within a container) is None, not an error.
"""
# NVML's Python binding ships no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable, Collection, Iterable
from typing import Any

import pynvml
from msgspec import Struct

from ..contract.errors import RefusedError
from .timeouts import Asker, UnansweredError

_SLOWED = {
    0x04: "SW power cap",
    0x08: "HW slowdown",
    0x20: "SW thermal slowdown",
    0x40: "HW thermal slowdown",
    0x80: "HW power brake",
}
"""Clocks event reasons, as `nvidia-smi` names them. Idle and application clocks are no reason for a notice."""
_ABNORMAL = 0x08 | 0x20 | 0x40 | 0x80
"""All but the power cap, which is ordinary."""
ORDINARY = frozenset({_SLOWED[0x04]})
"""Reasons of :attr:`GpuReading.slowed` that a busy GPU has without anything being wrong."""


class Gpu(Struct):
    """One GPU, as NVML sees it. Memory in bytes."""

    index: int
    name: str
    memory: int
    free: int
    desktop: int = 0
    """Held by processes that draw and do not compute; those of other containers are not seen."""


class Faults(Struct, frozen=True, kw_only=True):
    """Errors of one GPU. Counts only grow while a driver is loaded; None where NVML does not report them."""

    index: int
    uncorrected: int | None = None
    """Uncorrectable ECC errors."""
    remapped: int | None = None
    """Rows that were remapped after such an error."""
    remap_pending: bool = False
    """A row waits for the next reset to be remapped."""
    remap_failed: bool = False
    """Row remapping failed: no spare row was left, and the GPU must be replaced."""
    slowed: list[str] = []
    """Heat, power brake or hardware that reduces its clocks; a power cap is ordinary."""


class GpuReading(Struct, frozen=True, kw_only=True):
    """One GPU at one moment. Bytes, percent, °C, watts, MHz; None where NVML does not report it."""

    index: int
    name: str
    memory_used: int | None = None
    memory_total: int | None = None
    utilisation: int | None = None
    temperature: int | None = None
    power: float | None = None
    power_limit: float | None = None
    clock: int | None = None
    """Of the streaming multiprocessors."""
    clock_max: int | None = None
    slowed: list[str] = []
    """Why its clocks are reduced."""
    faults: Faults
    processes: dict[int, int | None] = {}
    """Pid that computes there → bytes that it holds, None where that is not reported. Pids of a container's outside
    are the outside's."""

    def held_by(self, pids: Collection[int]) -> int:
        """Return the bytes that these processes hold there."""
        return sum(held or 0 for pid, held in self.processes.items() if pid in pids)


class NvmlError(Exception):
    """NVML failed; the message is one line for a person."""


NVML = Asker("NVML")
"""Every call to NVML goes through this: a driver that hangs must not hang the caller."""
PATIENCE = 10.0
"""Seconds that a command waits for NVML: a driver that nobody holds open takes a second or two for each GPU."""


def find_gpus(seconds: float = PATIENCE) -> tuple[list[Gpu], str | None, str | None]:
    """Return the GPUs, the driver's version and, where NVML failed, why.

    Args:
        seconds: to wait for NVML.
    """
    try:
        return NVML.answer(_find_gpus, seconds)
    except UnansweredError as error:
        return [], None, str(error)


def known_gpus(seconds: float = PATIENCE) -> list[Gpu]:
    """Return the GPUs; none without a driver for them.

    Raises:
        RefusedError: NVML does not answer in time.
    """
    try:
        return NVML.answer(_find_gpus, seconds)[0]
    except UnansweredError as error:
        raise hung(error) from None


def hung(error: UnansweredError) -> RefusedError:
    """Return the error of a command that needs to know the GPUs."""
    return RefusedError(
        f"{error}: the GPU driver hangs. Until it recovers (often only after a reboot), plan for the CPU with "
        "`use_cpu=true`, or hide the GPUs with `CUDA_VISIBLE_DEVICES= ` before a command."
    )


def _find_gpus() -> tuple[list[Gpu], str | None, str | None]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], None, str(error)
    try:
        gpus: list[Gpu] = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = _text(pynvml.nvmlDeviceGetName(handle))
            gpus.append(Gpu(index, name, int(memory.total), int(memory.free), _desktop(handle)))
        return gpus, _text(pynvml.nvmlSystemGetDriverVersion()), None
    except pynvml.NVMLError as error:
        return [], None, str(error)
    finally:
        pynvml.nvmlShutdown()


class Nvml:
    """NVML kept open between readings. Any call may hang: call it through `NVML`, never from a thread that must not.

    Args:
        listen: collect Xid errors.

    Raises:
        NvmlError: from everything but `close`; NVML is closed then, and may be opened again.
    """

    def __init__(self, *, listen: bool = False) -> None:
        self._listening = listen
        self._handles: list[tuple[Any, str]] | None = None
        self._xids: Any = None  # an event set; None where there is none

    @property
    def is_open(self) -> bool:
        """Whether `read` can be called."""
        return self._handles is not None

    def open(self) -> None:
        """Load the library and find the GPUs."""
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise NvmlError(str(error)) from None
        self._handles = []
        try:
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                self._handles.append((handle, _text(pynvml.nvmlDeviceGetName(handle))))
            if self._listening:
                self._listen()
        except pynvml.NVMLError as error:
            self.close()
            raise NvmlError(str(error)) from None

    def read(self) -> list[GpuReading]:
        """Read every GPU."""
        try:
            return [self._one(index, *known) for index, known in enumerate(self._handles or [])]
        except pynvml.NVMLError as error:
            self.close()
            raise NvmlError(str(error)) from None

    def xids(self) -> list[tuple[int, int]]:
        """Return index and number of the Xid errors since the last call; https://docs.nvidia.com/deploy/xid-errors/."""
        errors: list[tuple[int, int]] = []
        while self._xids is not None:
            try:
                event = pynvml.nvmlEventSetWait_v2(self._xids, 0)
                errors.append((int(pynvml.nvmlDeviceGetIndex(event.device)), int(event.eventData)))
            except pynvml.NVMLError as error:
                if getattr(error, "value", None) == pynvml.NVML_ERROR_TIMEOUT:
                    break
                if getattr(error, "value", None) in _NOT_REPORTED:
                    self._xids = None
                    break
                self.close()
                raise NvmlError(str(error)) from None
        return errors

    def holders(self) -> set[int]:
        """Return the pids that hold GPU memory; not across containers."""
        try:
            return {pid for handle, _ in self._handles or [] for pid in _processes(handle)}
        except pynvml.NVMLError as error:
            self.close()
            raise NvmlError(str(error)) from None

    def close(self) -> None:
        """Shut the library down; does nothing when it is not open."""
        if self._handles is not None:
            self._handles = self._xids = None  # shutting down frees the event set with everything else
            try:
                pynvml.nvmlShutdown()
            except pynvml.NVMLError:  # the driver was unloaded: there is nothing to close
                return

    def _listen(self) -> None:
        """Register for Xid errors where GPUs report them."""
        events = _ask(pynvml.nvmlEventSetCreate)
        for handle, _ in self._handles or []:
            if events is not None:
                _ask(pynvml.nvmlDeviceRegisterEvents, handle, pynvml.nvmlEventTypeXidCriticalError, events)
        self._xids = events

    def _one(self, index: int, handle: Any, name: str) -> GpuReading:
        memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
        rates = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
        power = _ask(pynvml.nvmlDeviceGetPowerUsage, handle)
        limit = _ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
        reasons = _slowed(handle)
        return GpuReading(
            index=index,
            name=name,
            memory_used=None if memory is None else int(memory.used),
            memory_total=None if memory is None else int(memory.total),
            utilisation=None if rates is None else int(rates.gpu),
            temperature=_ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
            power=None if power is None else power / 1000,
            power_limit=None if limit is None else limit / 1000,
            clock=_ask(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
            clock_max=_ask(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM),
            slowed=_words(reasons),
            faults=_faults(index, handle, reasons),
            processes=_processes(handle),
        )


def work_of(readings: Iterable[GpuReading]) -> dict[int, int]:
    """Return pid that holds GPU memory → utilization in percent of the busiest such GPU."""
    utilization: dict[int, int] = {}
    for gpu in readings:
        for pid in gpu.processes:
            utilization[pid] = max(utilization.get(pid, 0), gpu.utilisation or 0)
    return utilization


def _faults(index: int, handle: Any, reasons: int) -> Faults:
    uncorrected, volatile = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    errors = _ask(pynvml.nvmlDeviceGetTotalEccErrors, handle, uncorrected, volatile)
    rows = _ask(pynvml.nvmlDeviceGetRemappedRows, handle)  # corrected, uncorrected, pending, failed
    return Faults(
        index=index,
        uncorrected=None if errors is None else int(errors),
        remapped=None if rows is None else int(rows[1]),
        remap_pending=rows is not None and bool(rows[2]),
        remap_failed=rows is not None and bool(rows[3]),
        slowed=_words(reasons & _ABNORMAL),
    )


def _words(reasons: int) -> list[str]:
    return [text for bit, text in _SLOWED.items() if reasons & bit]


def _slowed(handle: Any) -> int:
    """Return the clocks event reasons, by their newer name or by the one that older drivers and bindings know."""
    for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
        question = getattr(pynvml, name, None)
        if question is not None and (bits := _ask(question, handle)) is not None:
            return int(bits)
    return 0


def _processes(handle: Any) -> dict[int, int | None]:
    running = _ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
    return {int(one.pid): None if one.usedGpuMemory is None else int(one.usedGpuMemory) for one in running}


def _desktop(handle: Any) -> int:
    """Return the bytes that a desktop holds on a GPU."""
    drawing = _ask(pynvml.nvmlDeviceGetGraphicsRunningProcesses, handle) or []
    computing = _processes(handle) if drawing else {}
    return sum(int(one.usedGpuMemory or 0) for one in drawing if int(one.pid) not in computing)


def _ask(question: Callable[..., Any], *arguments: Any) -> Any:
    """Call NVML; None where this GPU, driver or user gets no answer.

    Raises:
        pynvml.NVMLError: NVML or the GPU is lost.
    """
    try:
        return question(*arguments)
    except pynvml.NVMLError as error:
        if getattr(error, "value", None) in _NOT_REPORTED:
            return None
        raise


_NOT_REPORTED = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
        pynvml.NVML_ERROR_NOT_FOUND,
        pynvml.NVML_ERROR_UNKNOWN,
    }
)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
