"""The GPUs of this machine, asked without torch."""
# NVML's Python binding ships no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import pynvml
from msgspec import Struct


class Gpu(Struct):
    """One GPU, as NVML sees it. Memory in bytes."""

    index: int
    name: str
    memory: int
    free: int


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
            gpus.append(Gpu(index, str(pynvml.nvmlDeviceGetName(handle)), int(memory.total), int(memory.free)))
        return gpus, str(pynvml.nvmlSystemGetDriverVersion()), None
    except pynvml.NVMLError as error:
        return [], None, str(error)
    finally:
        pynvml.nvmlShutdown()
