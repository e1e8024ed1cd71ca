"""Which NVIDIA GPUs this process may use, asked without torch."""

import os
from collections.abc import Mapping
from typing import Any

import pynvml  # pyright: ignore[reportMissingTypeStubs]
from msgspec import Struct


class Card(Struct, frozen=True):
    """One GPU."""

    name: str
    memory: int
    """Bytes in all."""


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Names for ``CUDA_VISIBLE_DEVICES`` of the GPUs that are visible, in their order.

    As in CUDA, an unset variable means all of them, and the list ends at the first name that is not a device.
    """
    count = _device_count()
    if count == 0:
        return []
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return [str(index) for index in range(count)]
    visible: list[str] = []
    for name in (part.strip() for part in listed.split(",")):
        known = int(name) < count if name.isdecimal() else name.startswith(("GPU-", "MIG-"))
        if not known:
            break
        visible.append(name)
    return visible


def _device_count() -> int:
    """GPUs of the machine; 0 without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver or no device: this machine trains on its CPU
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()


def first_card() -> Card | None:
    """The first visible GPU; None without one, or where the driver does not say (a slice of a card, perhaps)."""
    names = visible_gpus()
    if not names:
        return None
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
        try:
            by_index = names[0].isdecimal()
            handle = (
                nvml.nvmlDeviceGetHandleByIndex(int(names[0])) if by_index else nvml.nvmlDeviceGetHandleByUUID(names[0])
            )
            return Card(str(nvml.nvmlDeviceGetName(handle)), int(nvml.nvmlDeviceGetMemoryInfo(handle).total))
        finally:
            nvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
