"""Attention implementations of a recipe: transformers' names, and kernels from the hub that a person has allowed.

A kernel is code that is downloaded and executed. So its recipe pins it by commit, and whoever owns the machine allows
it by name, in an environment variable: a recipe from elsewhere cannot do that.
"""

import os
import re

from .errors import RefusedError

IMPLEMENTATIONS = (
    "eager",
    "sdpa",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
    "flex_attention",
)
"""As transformers 5 has them."""
FLASH_PACKAGES = {
    "flash_attention_2": "flash-attn",
    "flash_attention_3": "flash-attn-3",
    "flash_attention_4": "flash-attn-4",
}
"""Distributions that they need; without, transformers would load an unpinned kernel from the hub instead."""
WIDEST_HEAD = 256
"""Elements of a head, at most, in FlashAttention's kernels."""
ALLOWED_KERNELS = "STACKLLAMA_ALLOWED_KERNELS"
"""Environment variable: names of kernels that may be executed, separated by commas."""
_KERNEL = re.compile(r"(?P<name>kernels-community/[\w.-]+)(@(?P<revision>[^@:]*))?(:\w+)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_flash(implementation: str | None) -> bool:
    """Return whether an implementation is FlashAttention's interface, which takes rows laid end to end."""
    return implementation is not None and implementation in FLASH_PACKAGES


def check_attention(implementation: str) -> None:
    """Check the value of `attn_implementation` by itself.

    Raises:
        ValueError: it is neither one of transformers' names nor a kernel pinned by commit.
    """
    if implementation in IMPLEMENTATIONS:
        return
    kernel = _KERNEL.fullmatch(implementation)
    if kernel is None:
        raise ValueError(
            f"`attn_implementation: {implementation}`: expected one of {', '.join(IMPLEMENTATIONS)}, or a kernel "
            "`kernels-community/NAME@COMMIT`."
        )
    if not _COMMIT.fullmatch(kernel["revision"] or ""):
        raise ValueError(
            f"`attn_implementation: {implementation}`: a kernel is code from a hub; pin it by its commit, "
            f"`{kernel['name']}@` and 40 hexadecimal digits."
        )


def check_allowed(implementation: str | None) -> None:
    """Refuse a kernel from the hub that is not allowed on this machine.

    Raises:
        RefusedError: its name is not in `STACKLLAMA_ALLOWED_KERNELS`.
    """
    kernel = _KERNEL.fullmatch(implementation or "")
    if kernel is None:
        return
    allowed = [name.strip() for name in os.environ.get(ALLOWED_KERNELS, "").split(",")]
    if kernel["name"] not in allowed:
        raise RefusedError(
            f"`attn_implementation: {implementation}` executes code from a hub; to allow it on this machine, set the "
            f"environment variable `{ALLOWED_KERNELS}={kernel['name']}`, or use `sdpa`."
        )
