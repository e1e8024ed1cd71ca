"""What a benchmark asks of its device: attainable rates, how busy it is, what it allocated.

Works on a CPU as well, where a card's answers are None.
"""

import gc
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from floor import Rates


def synchronize(device: str) -> None:
    """Wait for everything that the device was given to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def fastest(work: Callable[[], object], device: str, times: int = 3) -> float:
    """Return the least seconds of ``work`` over a few times, after one to warm up."""
    work()
    synchronize(device)
    seconds: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def measure_rates(device: str) -> Rates:
    """Measure what a large product of bfloat16 matrices and a large copy attain; floors are computed from these."""
    width, length = (8192, 1 << 30) if device == "cuda" else (256, 1 << 22)
    left, right = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.zeros(length, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    product = fastest(lambda: left @ right, device, 10)
    copy = fastest(lambda: target.copy_(source), device, 10)
    rates = Rates(flop=2.0 * width**3 / product, bytes=2.0 * length / copy)
    return rates


def release(device: str) -> int:
    """Give cached memory back; return the bytes that are still allocated on the card."""
    gc.collect()
    if device != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


class BusyMeter(threading.Thread):
    """Share of time in which a kernel ran on the card, per phase, as NVML reports it.

    NVML averages over up to a second, so a phase shorter than that is blurred with its neighbours.

    Args:
        device: ``cuda`` or ``cpu``.
        phase: names the current phase.
    """

    def __init__(self, device: str, phase: Callable[[], str]) -> None:
        super().__init__(daemon=True)
        self._device, self._phase, self._done = device, phase, threading.Event()
        self._percents: dict[str, list[int]] = defaultdict(list)

    def run(self) -> None:
        """Read until stopped, or until the card does not tell."""
        while self._device == "cuda" and not self._done.wait(0.1):
            phase = self._phase()
            try:
                self._percents[phase].append(torch.cuda.utilization())
            except Exception as error:  # noqa: BLE001 - NVML has many ways not to answer; the benchmark continues
                print(f"NVML does not report how busy the card is: {error}", flush=True)
                return

    def stop(self) -> dict[str, float]:
        """Stop, if it was started; return the mean share of each phase that was seen."""
        self._done.set()
        if self.is_alive():
            self.join()
        return {phase: sum(values) / len(values) / 100 for phase, values in self._percents.items()}


def profiled(work: Callable[[], object], device: str) -> dict[str, Any]:
    """Run once under torch's profiler: launches and copies, and milliseconds of the card's and of the clock's.

    The profiler itself slows the host, so times without it are taken apart from this.
    """
    if device != "cuda":
        return {}
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    events: Any = profiler.events()
    on_card = [event for event in events if event.device_type == DeviceType.CUDA]
    kernels = [event for event in on_card if not event.is_user_annotation]  # a range, such as an optimizer's step
    return {
        "launches": len(kernels),
        "gpu_ms": sum(event.time_range.elapsed_us() for event in kernels) / 1e3,
        "profiled_ms": wall * 1e3,
    }
