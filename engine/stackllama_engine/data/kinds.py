"""Kind of data source that a name stands for, from names and files alone, so that a launch can check it.

Several files are one source: a folder of them, a pattern in place of a file's name (``data/train-*.parquet``), or a
folder that ``datasets`` saved. They are read in the order of their names.
"""

import re
import shlex
from pathlib import Path
from typing import Any, Literal, TypeVar

from msgspec import Struct, convert

from ..contract.atomic_files import PATTERN, existing
from ..contract.errors import DataError
from ..contract.user_dirs import expanded
from ..contract.user_files import read_json
from .manifest import MANIFEST

_T = TypeVar("_T")
Kind = Literal["demo", "prepared", "file", "files", "hub"]

DEMO = "demo"
PAIRED = "lvwerra/stack-exchange-paired"
TEXT_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
"""Suffixes of files that may also be compressed."""
SUFFIXES = (*TEXT_SUFFIXES, ".parquet", ".arrow")
COMPRESSED = (".gz", ".zst")
_POSTS = "Posts.xml"
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar")
FILE_SUFFIXES = (*SUFFIXES, ".txt", ".xml", *_PACKED)
"""Suffixes of file names, readable or not: no hub data set has such a name."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
_NO_ROWS = (_SAVED, _SAVED_SPLITS, "dataset_info.json", "dataset_infos.json")
"""JSON files that ``datasets`` puts beside the rows."""


def kind_of(name: str) -> Kind:
    """Return the kind of data source that a name stands for.

    Raises:
        DataError: it is none; the message says what to give instead.
    """
    path = expanded(name)
    if name == DEMO:
        return "demo"
    if path.is_dir() and (path / MANIFEST).is_file():
        return "prepared"
    if path.is_dir() or is_pattern(name):
        files_of(name)
        return "files"
    if path.exists() or path.suffix in FILE_SUFFIXES:
        if not path.is_file():
            raise DataError(f"{path}: no such file." if not path.exists() else f"{path} is not a regular file.")
        _check_suffix(path)
        return "file"
    if is_hub_id(name):
        return "hub"
    raise DataError(
        f"{name!r} is not a data source: give a directory made by `data prepare`, a file or a folder of files, a hub "
        "id, or `demo`."
    )


def is_pattern(name: str) -> bool:
    """Return whether a name is a pattern for files rather than a path or a hub id."""
    return any(letter in Path(name).name for letter in PATTERN) and existing(name) is None


def files_of(name: str) -> list[Path]:
    """Return the files with the rows of a source that is a file, a folder or a pattern, in order.

    Raises:
        DataError: there is none, or one cannot be read as it is.
    """
    path = expanded(name)
    if is_pattern(name):
        files = sorted(file for file in path.parent.glob(path.name) if file.is_file())
        if not files:
            raise DataError(f"{path}: no file has such a name.")
        for file in files:
            _check_suffix(file)
        return files
    return _files_in(path) if path.is_dir() else [path]


def format_of(path: Path) -> tuple[str, str]:
    """Return a file's suffix, and that of its compression or an empty text: ``(".jsonl", ".gz")``."""
    if path.suffix in COMPRESSED and (inner := Path(path.stem).suffix) in TEXT_SUFFIXES:
        return inner, path.suffix
    return path.suffix, ""


def needs_pyarrow(name: str) -> bool:
    """Return whether a local source can only be read with pyarrow."""
    return any(file.suffix in (".parquet", ".arrow", ".zst") for file in files_of(name))


def _files_in(folder: Path) -> list[Path]:
    if (folder / _POSTS).is_file():
        raise DataError(
            f"{folder} is an unpacked Stack Exchange dump: run `stackllama-console data prepare {folder / _POSTS} "
            "--out DIR` and give DIR."
        )
    if (folder / _SAVED_SPLITS).is_file() and (
        names := _saved(folder / _SAVED_SPLITS, "splits", list[str])
    ) is not None:
        splits = ", ".join(str(folder / split) for split in names)
        raise DataError(f"{folder} holds several saved data sets; give one of {splits}.")
    if (folder / _SAVED).is_file() and (saved := _saved(folder / _SAVED, "_data_files", list[_SavedFile])) is not None:
        return [folder / file.filename for file in saved]
    inside = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    files = [file for file in inside if _is_readable(file) and file.name not in _NO_ROWS]
    if packed := [file for file in inside if file.suffix in _PACKED and file not in files]:
        _check_suffix(packed[0])
    if not files:
        raise DataError(
            f"{folder} holds no data: it has neither {MANIFEST} (of `stackllama-console data prepare`) nor a file that "
            f"ends in {', '.join(SUFFIXES)}."
        )
    return files


class _SavedFile(Struct):
    filename: str


def _saved(path: Path, key: str, kind: type[_T]) -> _T | None:
    """Return what ``datasets`` wrote under a key; None: the file is somebody else's."""
    try:
        facts = read_json(path, dict[str, Any])
        return convert(facts[key], kind) if key in facts else None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from None


def _is_readable(path: Path) -> bool:
    return format_of(path)[0] in SUFFIXES


def _check_suffix(path: Path) -> None:
    """Check that a file has one of the suffixes that are read.

    Raises:
        DataError: it has another one; says what to do.
    """
    if not _is_readable(path):
        wanted = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise DataError(f"{path}: expected a {wanted} file; {_way_out(path)}")


def _way_out(path: Path) -> str:
    if path.suffix == ".7z":
        return f"unpack a Stack Exchange dump with {unpack_command(path)}, then convert it with `data prepare`."
    if path.suffix in _PACKED:
        return "unpack this one first."
    if path.suffix == ".xml":
        return f"convert a {_POSTS} with `stackllama-console data prepare` first."
    return "convert its rows to JSON Lines, one object per line."


def unpack_command(path: Path) -> str:
    """Return the command that unpacks the posts of a Stack Exchange archive into the current folder."""
    return f"`7z x {shlex.quote(str(path))} {_POSTS}` (package p7zip-full)"


def has_known_columns(name: str) -> bool:
    """Return whether the columns of a source are known here, so that unread ones need no notice."""
    return name == PAIRED or kind_of(name) in ("demo", "prepared")


def is_hub_id(name: str) -> bool:
    """Return whether ``name`` can be a hub data set: ``owner/name`` or ``name``."""
    return len(name) <= 193 and _HUB_ID.fullmatch(name) is not None
