"""Model types that the installed transformers and PEFT know, read from their source: neither is imported.

A table of one's own would refuse what a newer release can do.
"""

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

_AUTO = ("transformers", "models/auto/modeling_auto.py")
_CONSTANTS = ("peft", "utils/constants.py")


def can_classify(model_type: str) -> bool | None:
    """Return whether transformers has a sequence-classification class for a model type.

    None: it has no causal language model of that type either, or it is not known.
    """
    causal = _table(*_AUTO, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
    if model_type not in causal:
        return None
    table = _table(*_AUTO, "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES")
    return model_type in table if table else None


def has_default_targets(model_type: str) -> bool | None:
    """Return whether PEFT has default LoRA targets for a model type; None: not known."""
    table = _table(*_CONSTANTS, "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING")
    return model_type in table if table else None


@cache
def _table(package: str, file: str, name: str) -> dict[str, Any]:
    """Read a table of a module's source; empty where it is not there, or no longer written as one literal."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return {}
    try:
        text = (Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8")
    except OSError:
        return {}
    _, _, rest = text.partition(f"\n{name} = ")
    literal = rest[: min((at for end in ("\n)\n", "\n}\n") if (at := rest.find(end)) >= 0), default=0) + 2]
    try:
        return dict(ast.literal_eval(literal.strip().removeprefix("OrderedDict")))
    except (SyntaxError, ValueError, TypeError):
        return {}
