"""The GPUs of this machine, asked without torch: what they do, what is wrong with them, who holds their memory.

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

from ..contract.errors import RefusedError
from .timeouts import Asker, UnansweredError

_SLOWED = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "too hot",
    0x40: "too hot, slowed by hardware",
    0x80: "power brake",
}
"""Why clocks are lower than they could be. Idle and chosen clocks are no reasons to tell anybody."""
_TROUBLE = 0x08 | 0x20 | 0x40 | 0x80
"""Those that are no part of ordinary work: everything but the power cap."""


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


class Faults(Struct, frozen=True, kw_only=True):
    """What is wrong with one GPU. Counts only grow while a driver is loaded; None where NVML does not tell."""

    index: int
    uncorrected: int | None = None
    """ECC errors that could not be corrected."""
    remapped: int | None = None
    """Rows of memory that were replaced after such an error."""
    remap_failed: bool = False
    """No row was left to replace one with: the card has to be changed."""
    slowed: list[str] = []
    """Heat, power brake or hardware that holds its clocks down; a power cap is ordinary."""


class NvmlError(Exception):
    """NVML does not answer; the message is one line for a person."""


NVML = Asker("NVML")
"""Whoever asks NVML asks here: a driver that hangs must not hang the asker."""
PATIENCE = 10.0
"""Seconds that a command waits for NVML: a driver that nobody holds open takes a second or two for each GPU."""


def find_gpus(seconds: float = PATIENCE) -> tuple[list[Gpu], str | None, str | None]:
    """GPUs, the driver's version and, where NVML cannot say, why.

    Args:
        seconds: to wait for NVML.
    """
    try:
        return NVML.answer(_find_gpus, seconds)
    except UnansweredError as error:
        return [], None, str(error)


def known_gpus(seconds: float = PATIENCE) -> list[Gpu]:
    """The GPUs, for whoever has to know; none without a driver for them.

    Raises:
        RefusedError: NVML does not answer in time.
    """
    try:
        return NVML.answer(_find_gpus, seconds)[0]
    except UnansweredError as error:
        raise hung(error) from None


def hung(error: UnansweredError) -> RefusedError:
    """What is said where nothing can be done without the GPUs."""
    return RefusedError(
        f"{error}: the GPUs' driver hangs. Until it is back (often a reboot), `use_cpu=true` plans for the CPU, and "
        "`CUDA_VISIBLE_DEVICES= ` before a command leaves the GPUs alone."
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
            gpus.append(Gpu(index, _text(pynvml.nvmlDeviceGetName(handle)), int(memory.total), int(memory.free)))
        return gpus, _text(pynvml.nvmlSystemGetDriverVersion()), None
    except pynvml.NVMLError as error:
        return [], None, str(error)
    finally:
        pynvml.nvmlShutdown()


class Nvml:
    """NVML kept open between readings. All of it may hang: through `NVML` alone, never from a thread that must go on.

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
        """Whether `read` can be asked."""
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

    def read(self, pids: Collection[int] = ()) -> list[GpuReading]:
        """Every GPU now, with the memory of those of the processes that use it."""
        try:
            return [self._one(index, *known, pids) for index, known in enumerate(self._handles or [])]
        except pynvml.NVMLError as error:
            self.close()
            raise NvmlError(str(error)) from None

    def faults(self) -> list[Faults]:
        """What is wrong with every GPU."""
        try:
            return [_faults(index, handle) for index, (handle, _) in enumerate(self._handles or [])]
        except pynvml.NVMLError as error:
            self.close()
            raise NvmlError(str(error)) from None

    def xids(self) -> list[tuple[int, int]]:
        """Index and number of the Xid errors since the last call; https://docs.nvidia.com/deploy/xid-errors/."""
        found: list[tuple[int, int]] = []
        while self._xids is not None:
            try:
                event = pynvml.nvmlEventSetWait_v2(self._xids, 0)
                found.append((int(pynvml.nvmlDeviceGetIndex(event.device)), int(event.eventData)))
            except pynvml.NVMLError as error:
                if getattr(error, "value", None) == pynvml.NVML_ERROR_TIMEOUT:
                    break
                self.close()
                raise NvmlError(str(error)) from None
        return found

    def work(self) -> dict[int, int]:
        """Pids that hold memory of a GPU → per cent that it is at work; not across a container's border."""
        found: dict[int, int] = {}
        try:
            for handle, _ in self._handles or []:
                running = _ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
                rates = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle) if running else None
                for one in running:
                    found[int(one.pid)] = max(found.get(int(one.pid), 0), 0 if rates is None else int(rates.gpu))
        except pynvml.NVMLError as error:
            self.close()
            raise NvmlError(str(error)) from None
        return found

    def close(self) -> None:
        """Let go of the library; does nothing when it is not open."""
        if self._handles is not None:
            self._handles = self._xids = None  # shutting down frees the event set with everything else
            try:
                pynvml.nvmlShutdown()
            except pynvml.NVMLError:  # it has gone already: there is nothing to close
                return

    def _listen(self) -> None:
        """Register for Xid errors where cards report them."""
        events = _ask(pynvml.nvmlEventSetCreate)
        for handle, _ in self._handles or []:
            if events is not None:
                _ask(pynvml.nvmlDeviceRegisterEvents, handle, pynvml.nvmlEventTypeXidCriticalError, events)
        self._xids = events

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


def _faults(index: int, handle: Any) -> Faults:
    uncorrected, volatile = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    errors = _ask(pynvml.nvmlDeviceGetTotalEccErrors, handle, uncorrected, volatile)
    rows = _ask(pynvml.nvmlDeviceGetRemappedRows, handle)  # corrected, uncorrected, pending, failed
    reasons = _slowed(handle) & _TROUBLE
    return Faults(
        index=index,
        uncorrected=None if errors is None else int(errors),
        remapped=None if rows is None else int(rows[1]),
        remap_failed=rows is not None and bool(rows[3]),
        slowed=[text for bit, text in _SLOWED.items() if reasons & bit],
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
