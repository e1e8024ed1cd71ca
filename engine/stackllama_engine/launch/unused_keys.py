"""A notice at launch of keys that were set and have no effect, because of what other keys say."""

import msgspec

from ..contract.recipe import AnyRecipe, PPORecipe
from .preflight import training_stages


def unused_notices(recipe: AnyRecipe) -> list[str]:
    """Return a sentence for each setting that leaves keys which are not at their defaults without effect.

    Args:
        recipe: of any stage; of a pipeline, each of its stages is looked at.
    """
    keys: dict[str, list[str]] = {}
    for one in training_stages(recipe):
        if not isinstance(one, PPORecipe):
            continue
        defaults = {field.name: field.default for field in msgspec.structs.fields(one)}
        for key, setting in one.unused.items():
            if getattr(one, key) != defaults[key]:
                keys.setdefault(setting, []).append(f"`{key}`")
    return [
        f"{', '.join(named)} {'have' if len(named) > 1 else 'has'} no effect with `{setting}`"
        for setting, named in keys.items()
    ]
