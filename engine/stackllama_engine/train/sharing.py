"""Check that an adapter can share its base: policy, critic, reference and reward model all read the same weights.

Low-rank matrices beside frozen weights can. An initialisation that takes part of them out of the base (PiSSA, OLoRA,
CorDA, LoftQ; peft#2184) changes every other adapter and the reference with it; trained biases (peft#741, #792) and
whole modules (peft#493) are no part of the low-rank matrices and would be left behind.
"""

import json
from pathlib import Path
from typing import Any

from ..contract.base import CONFIG_FILE
from ..contract.errors import StageError

_BESIDE_THE_BASE = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of PEFT's ``init_lora_weights`` that leave the base as it is."""
_HEADS = frozenset({"score", "classifier"})
"""Modules that are read from an adapter by themselves."""


def own_base(adapter: Path) -> str | None:
    """Return what an adapter changes in its base, as ``key: value`` of its configuration; None: it can share it.

    Raises:
        StageError: the configuration cannot be read.
    """
    file = adapter / CONFIG_FILE
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(f"{file} cannot be read: {error}.") from None
    modules = sorted({*(config.get("modules_to_save") or ())} - _HEADS)
    found = {
        "peft_type": None if (kind := config.get("peft_type", "LORA")) == "LORA" else kind,
        "init_lora_weights": None if (init := config.get("init_lora_weights")) in _BESIDE_THE_BASE else init,
        "bias": None if (bias := config.get("bias", "none")) == "none" else bias,
        "modules_to_save": modules,
        "trainable_token_indices": config.get("trainable_token_indices"),
        "layer_replication": config.get("layer_replication"),
    }
    return next((f"{key}: {value}" for key, value in found.items() if value), None)


def check_shares(adapter: Path, key: str) -> None:
    """Refuse an adapter that cannot share its base.

    Args:
        adapter: its directory.
        key: the recipe's, which names it.

    Raises:
        StageError: it changes its base.
    """
    if found := own_base(adapter):
        raise StageError(
            f"`{key}={adapter}`: its `{found}` changes more than low-rank matrices, and the base is shared with the "
            "reference; merge it (`launch merge`) and name the merged model as `model_name_or_path`."
        )
