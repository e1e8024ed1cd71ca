"""Device memory from allocated memory: plus the allocator's fragmentation and the CUDA context.

Three numbers that must not be mixed up: allocated (``torch.cuda.max_memory_allocated``), reserved
(``max_memory_reserved``), and what NVML counts for the process. On a CPU the last is the resident set.
"""

Interval = tuple[int, int]

FRAGMENTS = (0.005, 0.10)
"""Fragmentation of the caching allocator, as a share of the allocated bytes."""
WORKSPACE = (0, 150 << 20)
"""cuBLAS workspaces and small blocks, rounded up to segments of 2 and 20 MiB."""
CONTEXT = (300 << 20, 1300 << 20)
"""CUDA context and loaded kernels; depends on driver and libraries."""
NCCL = (150 << 20, 700 << 20)
"""NCCL buffers per process, if there are several."""
HEAP = (0.0, 0.15)
"""Fragmentation of the heap, as a share of the allocated bytes."""
RUNTIME = (450 << 20, 1200 << 20)
"""Interpreter, torch and transformers in a process that trains on the CPU."""

LIKELY = 0.012
"""Most likely fragmentation on a GPU: the median of measured fine-tuning runs."""


def likely_reserved(allocated: int) -> int:
    """Return the most likely bytes that the allocator of a GPU reserves."""
    return round(allocated * (1 + LIKELY))


def reserved(allocated: int, *, on_gpu: bool) -> Interval:
    """Return the bytes that the allocator reserves at a peak of allocated bytes."""
    shares, rest = (FRAGMENTS, WORKSPACE) if on_gpu else (HEAP, (0, 0))
    low, high = (round(allocated * (1 + share)) + more for share, more in zip(shares, rest, strict=True))
    return low, high


def device(held: Interval, *, gpus: int, on_gpu: bool) -> Interval:
    """Return the bytes that the process takes from the device."""
    low, high = CONTEXT if on_gpu else RUNTIME
    if gpus > 1 and on_gpu:
        low, high = low + NCCL[0], high + NCCL[1]
    return held[0] + low, held[1] + high
