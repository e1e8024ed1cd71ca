"""Libraries that a stage does not use and that others import wherever they are installed.

PEFT imports bitsandbytes, and with it TorchInductor's compiler: a tenth of what a stage's imports take. The blocker is
Python's own: a module that is None in ``sys.modules`` counts as not installed.
"""

import json
import sys
from pathlib import Path

from ..contract.recipe import AnyRecipe, TrainRecipe

_QUANTISED = b'"quantization_config"'


def hide_unused(recipe: AnyRecipe) -> None:
    """Hide bitsandbytes from a stage without quantised weights and 8-bit optimizer states; called before imports."""
    if not needs_bitsandbytes(recipe) and "bitsandbytes" not in sys.modules:
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]


def needs_bitsandbytes(recipe: AnyRecipe) -> bool:
    """Return whether a stage may use bitsandbytes.

    A hub id may name weights that are quantised already, which nothing says before they are loaded.
    """
    if not isinstance(recipe, TrainRecipe):
        return True
    models = [recipe.model_name_or_path, getattr(recipe, "reward_model_path", None)]
    quantised = recipe.quantised or any(_may_be_quantised(Path(model)) for model in models if model)
    return quantised or "8bit" in recipe.optim or recipe.optim.startswith("paged")


def _may_be_quantised(model: Path) -> bool:
    if not model.exists():
        return True
    config, adapter = model / "config.json", model / "adapter_config.json"
    try:
        if adapter.is_file():  # its base is loaded
            base = json.loads(adapter.read_bytes()).get("base_model_name_or_path")
            return not base or base == str(model) or _may_be_quantised(Path(base))
        return config.is_file() and _QUANTISED in config.read_bytes()
    except (OSError, ValueError, AttributeError, TypeError):  # the stage says what is wrong with it
        return True
