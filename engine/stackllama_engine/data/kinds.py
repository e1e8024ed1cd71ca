"""What sort of data source a name means; looks at names and files only, so that a launch can ask."""

import re
from pathlib import Path
from typing import Literal

from ..contract.errors import DataError
from ..contract.user_dirs import expanded
from .manifest import MANIFEST

Kind = Literal["demo", "prepared", "file", "hub"]

DEMO = "demo"
PAIRED = "lvwerra/stack-exchange-paired"
SUFFIXES = (".jsonl", ".json", ".parquet")
_POSTS = "Posts.xml"
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z")
FILE_SUFFIXES = (*SUFFIXES, ".csv", ".tsv", ".txt", ".xml", ".arrow", *_PACKED)
"""What means a file, readable or not: no hub set is called like that."""

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
        if (path / _POSTS).is_file():
            raise DataError(
                f"{path} is an unpacked Stack Exchange dump: run `stackllama-console data prepare {path / _POSTS} "
                "--out DIR` and give DIR."
            )
        raise DataError(f"{path} has no {MANIFEST}: make a data directory with `data prepare POSTS.xml --out DIR`.")
    if path.exists() or path.suffix in FILE_SUFFIXES:
        if not path.is_file():
            raise DataError(f"No file {path}." if not path.exists() else f"{path} is not a regular file.")
        if path.suffix not in SUFFIXES:
            raise DataError(f"{path}: a data file is {', '.join(SUFFIXES)}; {_way_out(path)}")
        return "file"
    if is_hub_id(name):
        return "hub"
    raise DataError(f"No data source {name!r}: give a directory made by `data prepare`, a file, a hub id, or `demo`.")


def _way_out(path: Path) -> str:
    if path.suffix in _PACKED:
        return "unpack this one first."
    if path.suffix == ".xml":
        return f"a {_POSTS} goes through `data prepare` first."
    return "write its rows as JSON Lines, one object per line."


def has_known_columns(name: str) -> bool:
    """Whether a source's columns were given their meaning here, so that those not read need no mention."""
    return name == PAIRED or kind_of(name) in ("demo", "prepared")


def is_hub_id(name: str) -> bool:
    """Whether ``name`` can be a hub data set: ``owner/name`` or ``name``."""
    return len(name) <= 193 and _HUB_ID.fullmatch(name) is not None
