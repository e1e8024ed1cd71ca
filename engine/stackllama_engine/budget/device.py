"""From what is allocated to what a device loses: the allocator's fragments, and what is there before any tensor.

Three numbers that must not be mixed: allocated (``torch.cuda.max_memory_allocated``), reserved
(``max_memory_reserved``), and what NVML counts for the process. On a CPU the last is the resident set.
"""

Interval = tuple[int, int]

FRAGMENTS = (0.005, 0.10)
"""Share of the allocated bytes that the caching allocator holds on top."""
WORKSPACE = (0, 150 << 20)
"""cuBLAS workspaces and small blocks, rounded up to segments of 2 and 20 MiB."""
CONTEXT = (300 << 20, 1300 << 20)
"""CUDA context and loaded kernels; the driver and the libraries decide."""
NCCL = (150 << 20, 700 << 20)
"""Buffers of one process among several."""
HEAP = (0.0, 0.15)
RUNTIME = (450 << 20, 1200 << 20)
"""Interpreter, torch, transformers in a process that trains on the CPU."""


LIKELY = 0.012
"""The same share where one figure is asked for: the median of measured fine-tunings."""


def likely_reserved(allocated: int) -> int:
    """What the allocator of a GPU most likely holds."""
    return round(allocated * (1 + LIKELY))


def reserved(allocated: int, *, on_gpu: bool) -> Interval:
    """What the allocator holds at an allocated peak."""
    shares, rest = (FRAGMENTS, WORKSPACE) if on_gpu else (HEAP, (0, 0))
    low, high = (round(allocated * (1 + share)) + more for share, more in zip(shares, rest, strict=True))
    return low, high


def device(held: Interval, *, gpus: int, on_gpu: bool) -> Interval:
    """What the device has less of."""
    low, high = CONTEXT if on_gpu else RUNTIME
    if gpus > 1 and on_gpu:
        low, high = low + NCCL[0], high + NCCL[1]
    return held[0] + low, held[1] + high
