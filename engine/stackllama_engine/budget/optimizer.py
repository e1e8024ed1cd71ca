"""Gradients, the optimizer's states, and what one step needs for a moment; one function a kind where they differ.

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
"""Elements below which bitsandbytes keeps a tensor's states in float32."""
LEAST_PAGED = 100_000
"""Elements below which bitsandbytes does not page a tensor's states."""
BLOCK = 256
"""Elements that share a scale."""


class Trained(Struct, frozen=True):
    """Equal tensors that are trained."""

    rows: int
    columns: int = 0
    """0: a vector."""
    count: int = 1

    @property
    def elements(self) -> int:
        """Of one of them."""
        return self.rows * max(1, self.columns)


def kind_of(optim: Optim, *, on_gpu: bool) -> Optimizer:
    """What a recipe's ``optim`` becomes: plain torch AdamW is foreach where every parameter is on a GPU."""
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
    """Of all of them."""
    return sum(one.elements * one.count for one in trained)


def gradients(trained: int, width: int) -> int:
    """One gradient a trained element, in its dtype."""
    return trained * width


def states(trained: Iterable[Trained], width: int, kind: Optimizer) -> int:
    """What lies on the device between two steps.

    Args:
        trained: the tensors.
        width: bytes of an element.
        kind: of optimizer.
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
    """States that are kept elsewhere."""
    return 0


def adamw(one: Trained, width: int) -> int:
    """torch's: two moments in the parameter's dtype. Pure bf16 training has 4 bytes an element here, not 8."""
    return 2 * width * one.elements


def adamw_8bit(one: Trained) -> int:
    """bitsandbytes': two bytes an element, and two float32 scales a block; small tensors have float32 states."""
    if one.elements < LEAST_8BIT:
        return 8 * one.elements
    return 2 * one.elements + _scales(one)


def paged_8bit(one: Trained) -> int:
    """The same in CUDA's managed memory, which moves to the host when the GPU is full; the scales do not."""
    return adamw_8bit(one) if one.elements < LEAST_PAGED else _scales(one)


def paged_32bit(one: Trained) -> int:
    """Two float32 moments whatever the parameter's dtype, in managed memory unless the tensor is small."""
    return 8 * one.elements if one.elements < LEAST_PAGED else 0


def adafactor(one: Trained) -> int:
    """Sums over rows and over columns of a matrix in float32; a vector's second moment whole."""
    return 4 * (one.rows + one.columns)


def step_transient(trained: Sequence[Trained], width: int, kind: Optimizer, *, on_gpu: bool = True) -> int:
    """What one step needs for a moment.

    Args:
        trained: the tensors, in the order in which they are stepped.
        width: bytes of an element.
        kind: of optimizer.
        on_gpu: bitsandbytes' kernels work in place there; on a CPU it writes the states out in float32.
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
    """The squared gradient and its sum with epsilon in float32, before which 16-bit gradients and parameters are
    written out, while the update of the tensor before is still referred to."""
    own = 8 if width == 4 else 16
    order = [0, *(one.elements for one in trained)]
    return max((own * now + 4 * before for before, now in pairwise(order)), default=0)


def _scales(one: Trained) -> int:
    return 8 * -(-one.elements // BLOCK)
