"""The GPUs of this machine, asked without torch. The console's only place that speaks to NVML.

Functions and bits: https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html. What a card or a driver
does not tell (temperature of a virtual GPU, processes within a container) is None, not an error.
"""
# NVML's Python binding ships no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable, Collection
from typing import Any

import pynvml
from msgspec import Struct

from ..sanitise import one_line

_SLOWED = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "too hot",
    0x40: "too hot, slowed by hardware",
    0x80: "power brake",
}
"""Why clocks are lower than they could be. Idle and chosen clocks are no reasons to tell anybody."""


class Gpu(Struct):
    """One GPU, as NVML sees it. Memory in bytes."""

    index: int
    name: str
    memory: int
    free: int


class GpuReading(Struct, frozen=True, kw_only=True):
    """One GPU at one moment. Bytes, per cent, °C, watts; None where NVML does not tell."""

    index: int
    name: str
    memory_used: int | None = None
    memory_total: int | None = None
    utilisation: int | None = None
    temperature: int | None = None
    power: float | None = None
    power_limit: float | None = None
    slowed: list[str] = []
    """Why its clocks are held down."""
    processes: dict[int, int] = {}
    """Pid → bytes, of the processes that were asked for."""


class NvmlError(Exception):
    """NVML does not answer; the message is one line for a person."""


def find_gpus() -> tuple[list[Gpu], str | None, str | None]:
    """GPUs, the driver's version and, where NVML cannot say, why."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], None, str(error)
    try:
        gpus: list[Gpu] = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            gpus.append(Gpu(index, _text(pynvml.nvmlDeviceGetName(handle)), int(memory.total), int(memory.free)))
        return gpus, _text(pynvml.nvmlSystemGetDriverVersion()), None
    except pynvml.NVMLError as error:
        return [], None, str(error)
    finally:
        pynvml.nvmlShutdown()


class Nvml:
    """NVML kept open between readings.

    Raises:
        NvmlError: from `open` and `read`; NVML is closed then, and may be opened again.
    """

    def __init__(self) -> None:
        self._handles: list[tuple[Any, str]] | None = None

    @property
    def is_open(self) -> bool:
        """Whether `read` can be asked."""
        return self._handles is not None

    def open(self) -> None:
        """Load the library and find the GPUs."""
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise NvmlError(one_line(str(error))) from None
        self._handles = []
        try:
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                self._handles.append((handle, one_line(_text(pynvml.nvmlDeviceGetName(handle)))))
        except pynvml.NVMLError as error:
            self.close()
            raise NvmlError(one_line(str(error))) from None

    def read(self, pids: Collection[int] = ()) -> list[GpuReading]:
        """Every GPU now, with the memory of those of the processes that use it."""
        try:
            return [self._one(index, *known, pids) for index, known in enumerate(self._handles or [])]
        except pynvml.NVMLError as error:
            self.close()
            raise NvmlError(one_line(str(error))) from None

    def close(self) -> None:
        """Let go of the library; does nothing when it is not open."""
        if self._handles is not None:
            self._handles = None
            try:
                pynvml.nvmlShutdown()
            except pynvml.NVMLError:  # it has gone already: there is nothing to close
                return

    def _one(self, index: int, handle: Any, name: str, pids: Collection[int]) -> GpuReading:
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
            slowed=[text for bit, text in _SLOWED.items() if reasons & bit],
            processes=_processes(handle, pids) if pids else {},
        )


def _slowed(handle: Any) -> int:
    """The bits by their newer name, or by the only one that older drivers and bindings know."""
    for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
        question = getattr(pynvml, name, None)
        if question is not None and (bits := _ask(question, handle)) is not None:
            return int(bits)
    return 0


def _processes(handle: Any, pids: Collection[int]) -> dict[int, int]:
    running = _ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
    return {int(one.pid): int(one.usedGpuMemory) for one in running if one.pid in pids and one.usedGpuMemory}


def _ask(question: Callable[..., Any], *arguments: Any) -> Any:
    """The answer; None where this card, driver or person is not told.

    Raises:
        pynvml.NVMLError: NVML or the card has gone.
    """
    try:
        return question(*arguments)
    except pynvml.NVMLError as error:
        if getattr(error, "value", None) in _NOT_TOLD:
            return None
        raise


_NOT_TOLD = frozenset(
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
