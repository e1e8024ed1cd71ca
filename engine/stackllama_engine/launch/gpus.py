"""The NVIDIA GPUs that this process may use, by NVML, without torch."""

import os
from collections.abc import Mapping
from typing import Any

import pynvml  # pyright: ignore[reportMissingTypeStubs]
from msgspec import Struct

from ..contract.errors import RefusedError
from .nvml import NVML, PATIENCE, hung
from .timeouts import UnansweredError


class Card(Struct, frozen=True):
    """One GPU."""

    name: str
    memory: int
    """Total bytes."""


def visible_gpus(environment: Mapping[str, str] = os.environ, seconds: float = PATIENCE) -> list[str]:
    """List the visible GPUs by their names for ``CUDA_VISIBLE_DEVICES``, in their order.

    As in CUDA, an unset variable means all of them, and the list ends at the first name that is not a device.

    Raises:
        RefusedError: NVML does not answer within so many seconds: the usable GPUs are unknown.
    """
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is not None and not listed.strip():
        return []
    try:
        count = NVML.answer(_device_count, seconds)
    except UnansweredError as error:
        raise hung(error) from None
    if count == 0:
        return []
    if listed is None:
        return [str(index) for index in range(count)]
    visible: list[str] = []
    for name in (part.strip() for part in listed.split(",")):
        exists = int(name) < count if name.isdecimal() else name.startswith(("GPU-", "MIG-"))
        if not exists:
            break
        visible.append(name)
    return visible


def _device_count() -> int:
    """Count the GPUs of the machine; 0 without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver or no device: this machine trains on its CPU
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()


def first_card(seconds: float = 2.0) -> Card | None:
    """Return the first visible GPU; None without one, or where the driver does not report it (such as a MIG slice).

    Args:
        seconds: to wait for NVML.
    """
    try:
        names = visible_gpus(seconds=seconds)
        return NVML.answer(lambda: _card(names[0]), seconds) if names else None
    except (RefusedError, UnansweredError):
        return None


def smallest_card(names: list[str], seconds: float = PATIENCE) -> Card | None:
    """Return the one of these GPUs with the least memory; None where the driver does not report one of them.

    Raises:
        RefusedError: NVML does not answer within so many seconds.
    """
    try:
        cards = NVML.answer(lambda: [_card(name) for name in names], seconds)
    except UnansweredError as error:
        raise hung(error) from None
    known = [card for card in cards if card]
    return min(known, key=lambda card: card.memory) if known and len(known) == len(names) else None


def _card(name: str) -> Card | None:
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
        try:
            by_index = name.isdecimal()
            handle = nvml.nvmlDeviceGetHandleByIndex(int(name)) if by_index else nvml.nvmlDeviceGetHandleByUUID(name)
            return Card(str(nvml.nvmlDeviceGetName(handle)), int(nvml.nvmlDeviceGetMemoryInfo(handle).total))
        finally:
            nvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
