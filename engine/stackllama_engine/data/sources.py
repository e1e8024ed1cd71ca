"""Rows of any source, under one name for each column.

=============================================  =====================================================================
``demo``                                       the embedded demo (:mod:`.demo`)
a directory made by ``data prepare``           known by its ``manifest.json``
a ``.jsonl``, ``.json`` or ``.parquet`` file   has no splits: each row goes to the split that the hash of its question
                                               gives (:mod:`.splits`); the split ``all`` is the whole file
a hub id                                       through ``datasets``; see :mod:`.hub`
=============================================  =====================================================================

A path that exists is taken before a hub id of the same name. Columns may have other usual names (:data:`ALIASES`).

A text column that is missing, or holds something other than text, is an error that names the row: it would be so in
every row. A text that is null, blank, or has a NUL byte (C code downstream cuts there) is one bad row: it is skipped,
counted, and the counts go to the log at the end. No row at all is an error.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..contract.errors import DataError
from ..contract.stages import Split
from .files import read_file
from .hub import read_hub
from .kinds import kind_of
from .manifest import read_manifest
from .splits import split_of, stable_hash

Row = dict[str, Any]

ALL = "all"
TEXT_COLUMNS = ("question", "response_j", "response_k")
ALIASES: dict[str, tuple[str, ...]] = {
    "question": ("question", "prompt", "instruction"),
    "response_j": ("response_j", "chosen", "response", "answer", "completion"),
    "response_k": ("response_k", "rejected"),
}

_log = logging.getLogger(__name__)


def open_rows(
    name: str,
    split: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    streaming: bool = True,
    limit: int | None = None,
    needs: Iterable[str] = TEXT_COLUMNS,
    seed: int = 0,
    skipped: Counter[str] | None = None,
) -> Iterator[Row]:
    """Rows of one split, each with exactly the columns in ``needs``.

    Args:
        name: the source; see the module.
        split: finetune, reward, rl, evaluation or all; of another hub set, the name it has there.
        config: the hub set's configuration.
        revision: the hub set's branch, tag or commit.
        streaming: stream a hub set instead of downloading it whole.
        limit: at most so many rows.
        needs: question, response_j, response_k, or any further column of the source (given as it is).
        seed: of the demo's generator. It moves no question to another split.
        skipped: counts the bad rows, by reason.

    Raises:
        DataError: no such source or split, unreadable, a column missing, or no usable row in it.
    """
    bad: Counter[str] = Counter() if skipped is None else skipped
    wanted = tuple(needs)
    if limit is not None and limit <= 0:
        return
    kept = 0
    columns: dict[str, str] = {}
    for where, row in _raw_rows(name, split, config=config, revision=revision, streaming=streaming, seed=seed):
        columns = columns or _columns(row, wanted, name)
        clean = _clean(row, columns, f"{name}: {where}", bad)
        if clean is None:
            continue
        kept += 1
        yield clean
        if kept == limit:
            break
    if bad:
        _log.warning("%s, split %s: skipped %s", name, split, _reasons(bad))
    if kept == 0:
        raise DataError(_nothing(name, split, bad))


def text_columns(name: str, split: str, *, config: str | None = None, revision: str | None = None) -> tuple[str, ...]:
    """Those of :data:`TEXT_COLUMNS` that the source has, by its first row.

    Raises:
        DataError: no such source or split, unreadable, no row, or none of these columns.
    """
    for _, row in _raw_rows(name, split, config=config, revision=revision, streaming=True, seed=0):
        found = tuple(need for need in TEXT_COLUMNS if any(column in row for column in ALIASES[need]))
        return found or tuple(_columns(row, TEXT_COLUMNS, name))
    raise DataError(_nothing(name, split, Counter()))


def stamp(name: str) -> str:
    """A cheap identity of a source: it changes when a file of it does (path, size, time of change).

    A hub set has no more identity than its name; pin it with a revision.

    Raises:
        DataError: no such source.
    """
    kind = kind_of(name)
    path = Path(name).expanduser().resolve()
    if kind == "hub":
        files: list[Path] = []
    elif kind == "demo":
        files = [Path(__file__).with_name("demo.py")]
    else:
        files = sorted(path.iterdir()) if kind == "prepared" else [path]
    facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{stable_hash(kind, name if kind in ('hub', 'demo') else str(path), repr(facts)):016x}"


def unique_questions(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The first row of every question. Memory: a 64-bit hash a question."""
    seen: set[int] = set()
    for row in rows:
        digest = stable_hash(row["question"])
        if digest not in seen:
            seen.add(digest)
            yield row


def _raw_rows(
    name: str, split: str, *, config: str | None, revision: str | None, streaming: bool, seed: int
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where it stands, row as found)."""
    kind = kind_of(name)
    if kind == "hub":
        for number, row in read_hub(name, split, config=config, revision=revision, streaming=streaming):
            yield f"row {number}", row
        return
    splits = _splits(name, split)
    path = Path(name).expanduser()
    if kind == "demo":
        from .demo import generate

        for part in splits:
            yield from (("demo", row) for row in generate(part.value, seed))
    elif kind == "prepared":
        read_manifest(path)
        for part in splits:
            yield from ((f"{part}.jsonl, line {n}", row) for n, row in read_file(path / f"{part}.jsonl"))
    else:
        label = "line" if path.suffix == ".jsonl" else "row"
        whole = split == ALL
        for number, row in read_file(path):
            if whole or _split_of_row(row) in splits:
                yield f"{label} {number}", row


def _splits(name: str, split: str) -> tuple[Split, ...]:
    if split == ALL:
        return tuple(Split)
    if split in list(Split):
        return (Split(split),)
    raise DataError(f"{name}: no split {split!r}: it is one of {', '.join(Split)}, or {ALL}.")


def _split_of_row(row: Mapping[str, Any]) -> Split:
    """By the question's text; a row without one is kept in the first split, where reading it reports it."""
    for column in ALIASES["question"]:
        if isinstance(text := row.get(column), str):
            return split_of(text)
    return Split.FINETUNE


def _columns(row: Mapping[str, Any], needs: tuple[str, ...], name: str) -> dict[str, str]:
    """Which column of the source gives each needed one."""
    found: dict[str, str] = {}
    for need in needs:
        names = ALIASES.get(need, (need,))
        column = next((candidate for candidate in names if candidate in row), None)
        if column is None:
            also = f" (or {', '.join(names[1:])})" if names[1:] else ""
            raise DataError(f"{name}: no column {need}{also}; its columns are {', '.join(map(str, row)) or 'none'}.")
        found[need] = column
    return found


def _clean(row: Mapping[str, Any], columns: dict[str, str], where: str, bad: Counter[str]) -> Row | None:
    """The needed columns under their own names; ``None``, and counted, for a bad row."""
    clean: Row = {}
    for need, column in columns.items():
        if column not in row:
            raise DataError(f"{where}: no column {column}, which earlier rows have.")
        value = row[column]
        if need in ALIASES:
            if value is not None and not isinstance(value, str):
                hint = " A chat has to be flattened to text first." if isinstance(value, (list, dict)) else ""
                raise DataError(f"{where}: column {column} holds {type(value).__name__}, not text.{hint}")
            if reason := _bad_text(value):
                bad[f"{column} {reason}"] += 1
                return None
        clean[need] = value
    return clean


def _bad_text(text: str | None) -> str | None:
    if text is None:
        return "is null"
    if not text or text.isspace():
        return "is blank"
    return "has a NUL byte" if "\0" in text else None


def _nothing(name: str, split: str, bad: Counter[str]) -> str:
    if bad:
        return f"{name}: no usable row in split {split}: {_reasons(bad)}."
    way_out = (
        "" if split == ALL or kind_of(name) == "hub" else f" A small file may be used whole with the split `{ALL}`."
    )
    return f"{name}: no row in split {split}.{way_out}"


def _reasons(bad: Counter[str]) -> str:
    return ", ".join(f"{count} × {why}" for why, count in bad.items())
