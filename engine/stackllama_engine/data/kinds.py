"""Kind of data source that a name stands for, from names and files alone, so that a launch can check it."""

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
"""Suffixes of file names, readable or not: no hub data set has such a name."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def kind_of(name: str) -> Kind:
    """Return the kind of data source that a name stands for.

    Raises:
        DataError: it is none; the message says what to give instead.
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
        raise DataError(
            f"{path} is not a prepared directory: it has no {MANIFEST}. Create one with "
            "`stackllama-console data prepare POSTS.xml --out DIR`."
        )
    if path.exists() or path.suffix in FILE_SUFFIXES:
        if not path.is_file():
            raise DataError(f"{path}: no such file." if not path.exists() else f"{path} is not a regular file.")
        if path.suffix not in SUFFIXES:
            raise DataError(f"{path}: expected a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file; {_way_out(path)}")
        return "file"
    if is_hub_id(name):
        return "hub"
    raise DataError(
        f"{name!r} is not a data source: give a directory made by `data prepare`, a file, a hub id, or `demo`."
    )


def _way_out(path: Path) -> str:
    if path.suffix in _PACKED:
        return "unpack this one first."
    if path.suffix == ".xml":
        return f"convert a {_POSTS} with `stackllama-console data prepare` first."
    return "convert its rows to JSON Lines, one object per line."


def has_known_columns(name: str) -> bool:
    """Return whether the columns of a source are known here, so that unread ones need no notice."""
    return name == PAIRED or kind_of(name) in ("demo", "prepared")


def is_hub_id(name: str) -> bool:
    """Return whether ``name`` can be a hub data set: ``owner/name`` or ``name``."""
    return len(name) <= 193 and _HUB_ID.fullmatch(name) is not None
