"""Memory of gradients, optimizer states, and temporaries of one step; one function per kind where they differ.

Sources: torch ``optim/adamw.py``; bitsandbytes ``optim/optimizer.py`` (blocks of 256, arXiv:2110.02861); transformers
``optimization.py`` for Adafactor (arXiv:1804.04235).
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Literal

from msgspec import Struct

from ..contract.recipe import Optim

Optimizer = Literal["fused", "foreach", "loop", "adamw8bit", "paged8bit", "paged32bit", "adafactor", "none"]
"""``none``: nothing on the device, as with optimizer state offloaded to the host."""

LEAST_8BIT = 4096
"""Number of elements below which bitsandbytes keeps a tensor's states in float32."""
LEAST_PAGED = 100_000
"""Number of elements below which bitsandbytes does not page a tensor's states."""
BLOCK = 256
"""Elements that share a scale."""


class Trained(Struct, frozen=True):
    """Trained tensors of equal shape."""

    rows: int
    columns: int = 0
    """0 for a vector."""
    count: int = 1

    @property
    def elements(self) -> int:
        """Elements of one of them."""
        return self.rows * max(1, self.columns)


def kind_of(optim: Optim, *, on_gpu: bool) -> Optimizer:
    """Return the optimizer of a recipe's ``optim``; plain torch AdamW is foreach if every parameter is on a GPU."""
    match optim:
        case "adamw_torch_fused":
            return "fused"
        case "adamw_torch":
            return "foreach" if on_gpu else "loop"
        case "adamw_bnb_8bit" | "adamw_8bit":
            return "adamw8bit"
        case "paged_adamw_8bit":
            return "paged8bit"
        case "paged_adamw_32bit":
            return "paged32bit"
        case "adafactor":
            return "adafactor"


def elements(trained: Iterable[Trained]) -> int:
    """Count the elements of all tensors."""
    return sum(one.elements * one.count for one in trained)


def gradients(trained: int, width: int) -> int:
    """Return the bytes of the gradients: one per trained element, in its dtype."""
    return trained * width


def states(trained: Iterable[Trained], width: int, kind: Optimizer) -> int:
    """Return the bytes of the optimizer's states on the device between two steps.

    Args:
        trained: the trained tensors.
        width: bytes per element.
        kind: kind of optimizer.
    """
    by_kind: dict[Optimizer, Callable[[Trained], int]] = {
        "adamw8bit": adamw_8bit,
        "paged8bit": paged_8bit,
        "paged32bit": paged_32bit,
        "adafactor": adafactor,
        "none": nothing,
    }
    one_tensor = by_kind.get(kind)
    if one_tensor is None:
        return sum(adamw(one, width) * one.count for one in trained)
    return sum(one_tensor(one) * one.count for one in trained)


def nothing(_: Trained) -> int:
    """Return 0: the states are not on the device."""
    return 0


def adamw(one: Trained, width: int) -> int:
    """Return torch AdamW's two moments in the parameter's dtype: with pure bf16 4 bytes per element, not 8."""
    return 2 * width * one.elements


def adamw_8bit(one: Trained) -> int:
    """Return bitsandbytes' two bytes per element and two float32 scales per block; small tensors use float32."""
    if one.elements < LEAST_8BIT:
        return 8 * one.elements
    return 2 * one.elements + _scales(one)


def paged_8bit(one: Trained) -> int:
    """Return what cannot move to the host: 8-bit states are in CUDA's managed memory, their scales are not."""
    return adamw_8bit(one) if one.elements < LEAST_PAGED else _scales(one)


def paged_32bit(one: Trained) -> int:
    """Return what cannot move to the host: float32 moments are in managed memory unless the tensor is small."""
    return 8 * one.elements if one.elements < LEAST_PAGED else 0


def adafactor(one: Trained) -> int:
    """Return Adafactor's row and column sums of a matrix in float32, or a vector's whole second moment."""
    return 4 * (one.rows + one.columns)


def step_transient(trained: Sequence[Trained], width: int, kind: Optimizer, *, on_gpu: bool = True) -> int:
    """Return the peak of temporaries of one step.

    Args:
        trained: the trained tensors, in the order of the step.
        width: bytes per element.
        kind: kind of optimizer.
        on_gpu: bitsandbytes' GPU kernels work in place; on a CPU it dequantises the states to float32.
    """
    largest = max((one.elements for one in trained), default=0)
    match kind:
        case "foreach":  # a copy of everything trained
            return elements(trained) * width
        case "loop":  # one tensor's root and denominator
            return 2 * width * largest
        case "adamw8bit" | "paged8bit" if not on_gpu:  # both moments, gradient, root and denominator in float32
            return (20 if width == 4 else 24) * largest
        case "adafactor":
            return _adafactor_update(trained, width)
        case _:
            return 0


def _adafactor_update(trained: Sequence[Trained], width: int) -> int:
    """Return the peak of Adafactor's update.

    The squared gradient and its sum with epsilon in float32, with float32 copies of 16-bit gradients and parameters,
    while the update of the previous tensor is still referenced.
    """
    own = 8 if width == 4 else 16
    order = [0, *(one.elements for one in trained)]
    return max((own * now + 4 * before for before, now in pairwise(order)), default=0)


def _scales(one: Trained) -> int:
    return 8 * -(-one.elements // BLOCK)
