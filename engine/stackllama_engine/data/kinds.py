"""What sort of data source a name means; looks at names and files only, so that a launch can ask."""

import re
from typing import Literal

from ..contract.errors import DataError
from ..contract.user_dirs import expanded
from .manifest import MANIFEST

Kind = Literal["demo", "prepared", "file", "hub"]

DEMO = "demo"
SUFFIXES = (".jsonl", ".json", ".parquet")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def kind_of(name: str) -> Kind:
    """What sort of source a name means.

    Raises:
        DataError: it means none.
    """
    path = expanded(name)
    if name == DEMO:
        return "demo"
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return "prepared"
        raise DataError(f"{path} has no {MANIFEST}: make a data directory with `data prepare POSTS.xml --out DIR`.")
    if path.exists() or path.suffix in SUFFIXES:
        if path.is_file():
            return "file"
        raise DataError(f"No file {path}." if not path.exists() else f"{path} is not a regular file.")
    if is_hub_id(name):
        return "hub"
    raise DataError(f"No data source {name!r}: give a directory made by `data prepare`, a file, a hub id, or `demo`.")


def is_hub_id(name: str) -> bool:
    """Whether ``name`` can be a hub data set: ``owner/name`` or ``name``."""
    return len(name) <= 193 and _HUB_ID.fullmatch(name) is not None
