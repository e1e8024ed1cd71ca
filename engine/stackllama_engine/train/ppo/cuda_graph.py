"""A step of unchanging shapes as one CUDA graph: hundreds of kernels that the host launches at once.

A graph reads and writes the very tensors that the step did while it was captured, so whoever wants another result
writes other numbers into them.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from ..faults import memory_that_ran_out

Step = Callable[[], Tensor]
"""A step over tensors that stay where they are; its outputs may lie in the graph's memory until the next one."""


class CaptureError(Exception):
    """A step cannot be captured; the message says why. It can still be run."""


class Replay(Protocol):
    """A captured step."""

    def __call__(self) -> Tensor:
        """Run the step; return its outputs in memory of their own."""
        ...

    def close(self) -> None:
        """Give back the memory of the step's temporaries."""
        ...


class Recorder(Protocol):
    """Runs and captures steps."""

    def rehearse(self, step: Step) -> Tensor:
        """Run a step that will be captured next, so that nothing is loaded or tuned while it is.

        Raises:
            CaptureError: it cannot be captured. Whatever the step did before it failed is done.
        """
        ...

    def capture(self, step: Step) -> Replay:
        """Capture a step without running it.

        Raises:
            CaptureError: it cannot be captured.
        """
        ...

    def give_back(self) -> None:
        """Return the memory that no tensor uses any more to the device."""
        ...


class CudaGraphs:
    """Captures on one stream of the process, whose libraries' workspaces stay outside the graphs.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = torch.device("cuda", torch.cuda.current_device()) if device.index is None else device
        self._stream = _stream(self._device)

    def rehearse(self, step: Step) -> Tensor:
        """Run a step on the stream of capture; a step that waits for the device fails here, before a capture does."""
        current, mode = torch.cuda.current_stream(self._device), torch.cuda.get_sync_debug_mode()
        self._stream.wait_stream(current)
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.cuda.stream(self._stream):
                return step()
        except Exception as error:
            raise _failure(error) from error
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            current.wait_stream(self._stream)

    def capture(self, step: Step) -> "CudaReplay":
        """Capture a step; other threads may still use the device meanwhile."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        # the outer context restores the stream: that of `graph` does not where the capture's end raises
        unchanged = torch.cuda.stream(torch.cuda.current_stream(self._device))
        recording = torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local")
        try:
            with unchanged, recording:
                outputs = step()
        except Exception as error:
            _abandon(self._device, pool)
            raise _failure(error) from error
        return CudaReplay(graph, outputs)

    def give_back(self) -> None:
        """Return cached memory, that of closed graphs included."""
        torch.cuda.empty_cache()


class CudaReplay:
    """A captured graph and the tensor that it leaves its outputs in."""

    def __init__(self, graph: torch.cuda.CUDAGraph, outputs: Tensor) -> None:
        self._graph = graph
        self._outputs: Tensor | None = outputs

    def __call__(self) -> Tensor:
        """Replay; return a copy, because the next replay overwrites the outputs."""
        assert self._outputs is not None
        self._graph.replay()
        return self._outputs.clone()

    def close(self) -> None:
        """Drop the graph."""
        self._outputs = None
        self._graph.reset()


class Direct:
    """Runs every step as it is: what a device without graphs does, and what a failed capture leaves."""

    def rehearse(self, step: Step) -> Tensor:
        """Run the step."""
        return step()

    def capture(self, step: Step) -> "DirectReplay":
        """Keep the step, to be run."""
        return DirectReplay(step)

    def give_back(self) -> None:
        """Do nothing: the allocator of a CPU keeps what it has."""


class DirectReplay:
    """A step that is run."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self) -> Tensor:
        """Run the step."""
        return self._step()

    def close(self) -> None:
        """Do nothing."""


def recorder_for(device: torch.device) -> Recorder:
    """Return CUDA graphs on a CUDA device, else what runs each step as it is."""
    return CudaGraphs(device) if device.type == "cuda" else Direct()


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _failure(error: Exception) -> Exception:
    """Return the lack of memory that a failure comes from, as it is, or else a `CaptureError` with the first cause."""
    first: BaseException = error
    while True:
        if isinstance(first, Exception) and memory_that_ran_out(first) is not None:
            return first
        if first.__context__ is None:
            break
        first = first.__context__
    lines = str(first).strip().splitlines()
    return CaptureError(f"{type(first).__name__}: {lines[0][:160]}" if lines else type(first).__name__)


def _abandon(device: torch.device, pool: tuple[int, int]) -> None:
    """Take the allocator out of a capture that failed, which torch does only where the capture's end succeeds."""
    with suppress(RuntimeError):  # torch did
        torch._C._cuda_endAllocateToPool(device.index, pool)  # pyright: ignore[reportPrivateUsage]
    torch._C._cuda_releasePool(device.index, pool)  # pyright: ignore[reportPrivateUsage]
