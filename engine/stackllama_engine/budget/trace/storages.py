# pyright: basic
"""Tracking of every storage that a torch operation allocates, until it is freed: live bytes, and peaks by phase.

Sizes are rounded up to 512 bytes, as CUDA's caching allocator does (c10/cuda/CUDACachingAllocator, ``kMinBlockSize``).
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512
Kernel = Callable[..., Any]


class Storages(TorchDispatchMode):
    """Dispatch mode that counts storages; enter it inside a fake mode, so that it sees every operation first.

    Args:
        kernels: replacements of operations; each gets the operation's arguments, and its allocations are followed too.
            If it returns NotImplemented the operation runs as usual.
        momentary: temporaries of an operation's kernel, which are freed when it returns; each returns bytes.
    """

    def __init__(self, kernels: dict[Any, Kernel], momentary: dict[Any, Callable[..., int]]) -> None:
        super().__init__()
        self.bytes = 0
        self.peaks: dict[str, int] = {}
        self._phase = ""
        self._alive: dict[int, Any] = {}
        self._kernels = kernels
        self._momentary = momentary

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kernel = self._kernels.get(func)
        if kernel is not None:
            with self:
                made = kernel(*args, **kwargs)
            if made is not NotImplemented:
                return made
        out = func(*args, **kwargs)
        more = self._momentary.get(func)
        if more is not None:
            self._reach(self.bytes + more(*args, **kwargs))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.follow(leaf)
        return out

    def follow(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, unless it is already counted."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK

        def gone(_: Any) -> None:
            if self._alive.pop(key, None) is not None:
                self.bytes -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.bytes += size
        self._reach(self.bytes)

    def enter_phase(self, name: str) -> None:
        """Start a phase, to which later peaks belong."""
        self._phase = name
        self._reach(self.bytes)

    def forget_peaks(self) -> None:
        """Reset the peaks after a first step, in which the optimizer's states did not exist yet."""
        self.peaks.clear()
        self._reach(self.bytes)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Make tensors fake and follow their storages, inside the context."""
        with FakeTensorMode(allow_non_fake_inputs=True), self:
            yield

    def _reach(self, count: int) -> None:
        if count > self.peaks.get(self._phase, 0):
            self.peaks[self._phase] = count
