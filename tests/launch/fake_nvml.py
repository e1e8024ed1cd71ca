"""A stand-in for the parts of NVML's binding that we use."""

import os
from types import SimpleNamespace
from typing import Any

GIB = 1 << 30


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


class FakeNvml:
    """NVML with one GPU model; ``refused`` maps functions to the error they raise."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0
    NVML_CLOCK_SM = 1
    NVML_ERROR_TIMEOUT = 10
    nvmlEventTypeXidCriticalError = 8

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.refused: dict[str, int] = {}
        self.opened = self.closed = 0
        self.bits = 0
        self.pid = os.getpid()
        self.uncorrected = 0
        self.rows: tuple[int, int, int, int] = (0, 0, 0, 0)
        self.drawing: dict[int, int | None] = {}
        """Processes of a desktop: pid → bytes."""
        self.reported: list[tuple[int, int]] = []
        """Xid errors to report next: index and number."""
        self.registered: list[int] = []
        self.name: str | bytes = "A GPU \x1b[2J"

    def _may(self, name: str) -> None:
        if name in self.refused:
            raise NVMLError(self.refused[name])

    def nvmlInit(self) -> None:
        self._may("init")
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.closed += 1
        self._may("shutdown")

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"600.1"

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return self.name

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        self._may("memory")
        return SimpleNamespace(total=80 * GIB, used=(10 + handle) * GIB, free=(70 - handle) * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        self._may("utilisation")
        return SimpleNamespace(gpu=90 + handle % 10, memory=1)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        self._may("power")
        return 312_400

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        self._may("limit")
        return 400_000

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        self._may("temperature")
        return 60 + handle

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:
        self._may("clock")
        return 1755 - handle

    def nvmlDeviceGetMaxClockInfo(self, handle: int, kind: int) -> int:
        self._may("clock")
        return 1980

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:
        self._may("reasons")
        return self.bits

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        self._may("old reasons")
        return self.bits

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: int) -> list[Any]:
        self._may("graphics")
        return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in self.drawing.items()]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        self._may("processes")
        return [
            SimpleNamespace(pid=self.pid, usedGpuMemory=GIB),
            SimpleNamespace(pid=4, usedGpuMemory=2 * GIB),
            SimpleNamespace(pid=5, usedGpuMemory=None),
        ]

    def nvmlDeviceGetTotalEccErrors(self, handle: int, kind: int, counter: int) -> int:
        self._may("ecc")
        return self.uncorrected

    def nvmlDeviceGetRemappedRows(self, handle: int) -> tuple[int, int, int, int]:
        self._may("rows")
        return self.rows

    def nvmlEventSetCreate(self) -> str:
        self._may("events")
        return "events"

    def nvmlDeviceRegisterEvents(self, handle: int, kinds: int, events: str) -> None:
        assert (kinds, events) == (8, "events")
        self.registered.append(handle)

    def nvmlEventSetWait_v2(self, events: str, milliseconds: int) -> Any:
        self._may("wait")
        assert (events, milliseconds) == ("events", 0), "the supervisor must not wait"
        if not self.reported:
            raise NVMLError(self.NVML_ERROR_TIMEOUT)
        handle, number = self.reported.pop(0)
        return SimpleNamespace(device=handle, eventData=number)

    def nvmlDeviceGetIndex(self, handle: int) -> int:
        return handle
