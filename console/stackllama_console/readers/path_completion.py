"""Completion of a typed path from the names in its folder, as a shell does. For threads: folders may be slow."""

import os
from pathlib import Path

from msgspec import Struct

PATH_KEYS = frozenset(
    {
        "model_name_or_path",
        "base_model_name_or_path",
        "adapter_path",
        "reward_model_path",
        "policy_adapter_path",
        "dataset_name",
        "chat_template",
    }
)
"""Recipe keys whose value may be a path."""
_MOST = 5000
"""Entries of a folder that are looked at."""


class Completion(Struct, frozen=True):
    """What a path can be continued to."""

    text: str
    """The path with all that its candidates have in common."""
    names: tuple[str, ...] = ()
    """The candidates' names, in order, folders with a slash."""


def complete_path(text: str) -> Completion:
    """Complete a path; hidden names are offered once their dot is typed. Without candidates the text stays."""
    if text == "~":
        return Completion("~/")
    head, slash, begun = text.rpartition("/")
    names: list[str] = []
    try:
        with os.scandir(Path(head + slash or ".").expanduser()) as entries:
            for _, entry in zip(range(_MOST), entries, strict=False):
                hidden = entry.name.startswith(".") and not begun
                if entry.name.startswith(begun) and entry.name.isprintable() and not hidden:
                    names.append(entry.name + ("/" if entry.is_dir() else ""))
    except (OSError, RuntimeError, ValueError):  # no such folder, one that may not be read, `~nobody`
        return Completion(text)
    common = os.path.commonprefix(names)  # noqa: RUF071 - of names by character, as a shell completes
    return Completion(head + slash + (common or begun), tuple(sorted(names)))
