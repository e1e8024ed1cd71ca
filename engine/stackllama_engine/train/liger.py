"""Liger's Triton kernels for RMS norms, SwiGLU and rotary embeddings (https://github.com/linkedin/Liger-Kernel).

Its losses and heads stay off: SFT and PPO never hold the logits anyway.
"""

import importlib
import inspect
from typing import Any

import torch

from ..contract.errors import StageError

KERNELS = ("rope", "rms_norm", "swiglu")
"""Switches of Liger's functions that are turned on, where a model family has them; all others are turned off."""


def use_liger_kernels(model: Any, device: torch.device) -> None:
    """Replace norms, gated MLPs and rotary embeddings of a loaded model by Liger's; weights stay as they are.

    Raises:
        StageError: there is no GPU, the package is not installed, or it does not know this model family.
    """
    if device.type != "cuda":
        raise StageError("`use_liger_kernel: true` needs a GPU, and there is none; set `use_liger_kernel: false`.")
    try:
        families: Any = importlib.import_module("liger_kernel.transformers.monkey_patch").MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise StageError(
            f"`use_liger_kernel: true` needs the package liger-kernel ({error}); install the extra `[fast]`, or set "
            "`use_liger_kernel: false`."
        ) from None
    family = model.config.model_type
    apply = families.get(family)
    names = [] if apply is None else [*inspect.signature(apply).parameters]
    if apply is None or not set(KERNELS) & set(names):
        raise StageError(
            f"`use_liger_kernel: true`: Liger has no kernels for `{family}` models; set `use_liger_kernel: false`."
        )
    apply(model=model, **{name: name in KERNELS for name in names if name != "model"})
