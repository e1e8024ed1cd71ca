"""The words of a command that takes a recipe: a file, and overrides of it. Light, for commands that must be quick."""

import re
from pathlib import Path

from stackllama_engine.contract.errors import UsageError

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


def split_words(words: list[str]) -> tuple[Path | None, list[str]]:
    """Split the words into the recipe file, if there is one, and the ``key=value`` overrides.

    Raises:
        UsageError: two words that are no overrides.
    """
    overrides = [word for word in words if _OVERRIDE.match(word)]
    files = [word for word in words if not _OVERRIDE.match(word)]
    if len(files) > 1:
        raise UsageError(f"`{files[1]}` is neither key=value nor the recipe file, which is `{files[0]}`.")
    return (Path(files[0]) if files else None), overrides
