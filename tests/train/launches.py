"""Kernels that a GPU would launch and bytes that they would read and write, counted with fake tensors on a CPU."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh")


class Launches(TorchDispatchMode):
    """Counts operations that compute something: no views, no allocations. Attention's stand-ins count as nothing.

    Each operation is one launch that reads its operands and writes its results once; on a GPU a matrix product may be
    two launches, and reads more than that where its operands do not fit the cache. So a count is a lower bound, which
    grows when an operation is added.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.bytes = 0

    @property
    def count(self) -> int:
        return self.names.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        operands, results = _tensors((args, kwargs)), _tensors(out)
        name = func.overloadpacket._qualified_op_name.partition("::")[2]
        known = {_storage(one) for one in operands}
        computes = func._schema.is_mutable or any(_storage(one) not in known for one in results)
        computes = computes and not func.is_view
        if results and computes and name not in _ALLOCATIONS:
            self.names[_described(name, operands, results)] += 1
            self.bytes += sum(map(_size, operands)) + sum(map(_size, results))
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _size(tensor: Tensor) -> int:
    """Return a tensor's bytes in memory; what is broadcast is read from the cache."""
    stored = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return torch.Size(stored).numel() * tensor.element_size()


def _described(name: str, operands: list[Tensor], results: list[Tensor]) -> str:
    """Return an operation's name; of a cast with its dtypes."""
    if name != "_to_copy" or not operands:
        return name
    return f"{str(operands[0].dtype)[6:]} to {str(results[0].dtype)[6:]}"
