"""Rows of any source, with standard column names.

=====================================  =============================================================================
``demo``                               the embedded demo (:mod:`.demo_data`)
a directory made by ``data prepare``   recognised by its ``manifest.json``
a file, or several (:mod:`.kinds`)     has no splits: the hash of a row's question decides its split (:mod:`.splits`);
                                       the split ``all`` is the whole file
a hub id                               through ``datasets``; see :mod:`.hub`
=====================================  =============================================================================

An existing path has precedence over a hub id of the same name. Columns may have other common names, and a prompt may be
spread over several columns (:mod:`.columns`); conversations and other schemas are read as well (:mod:`.schemas`).

A text column that is missing, or holds something other than text, is an error that names the row, because it would be
so in every row. A text that is null, blank, or has a NUL byte (C code downstream truncates there) makes one bad row,
which is skipped and counted; the counts are logged at the end. No row at all is an error. A row may stand for several
(:mod:`.schemas`), which are yielded one after the other.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, TypeVar

from ..contract.errors import DataError
from .columns import (
    LOOK_AT,
    TEXT_COLUMNS,
    Columns,
    Row,
    available,
    clean_rows,
    columns_of,
    extra_columns,
    look_at,
    typical,
)
from .hub import read_hub
from .kinds import kind_of
from .local import ALL, local_rows
from .splits import same_text, stable_hash

_log = logging.getLogger(__name__)
_Row = TypeVar("_Row", bound=Mapping[str, Any])


def open_rows(
    name: str,
    split: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    streaming: bool = True,
    limit: int | None = None,
    needs: Iterable[str] = TEXT_COLUMNS,
    names: Mapping[str, str] | None = None,
    extra: Collection[str] = (),
    seed: int = 0,
    skipped: Counter[str] | None = None,
) -> Iterator[Row]:
    """Yield the rows of one split, each with the columns in ``needs``, ``messages`` of a conversation, and ``extra``.

    Args:
        name: the source; see the module.
        split: finetune, reward, rl, evaluation or all; for other hub data sets, their own split name.
        config: configuration of a hub data set.
        revision: branch, tag or commit of a hub data set.
        streaming: stream a hub data set instead of downloading it whole.
        limit: maximum number of rows.
        needs: of question, response_j and response_k.
        names: `dataset_columns`: our name → the source's column.
        extra: further columns of the source, as they are, None where a row lacks one; :data:`.columns.ALL_SCALARS`:
            all of text and numbers.
        seed: seed of the demo's generator. It does not change any question's split.
        skipped: counts bad rows by reason.

    Raises:
        DataError: no such source or split, unreadable, a column is missing, or it has no usable row.
    """
    bad: Counter[str] = Counter() if skipped is None else skipped
    wanted = tuple(needs)
    if limit is not None and limit <= 0:
        return
    kept = 0
    raw = _raw_rows(name, split, config=config, revision=revision, streaming=streaming, seed=seed, names=names)
    first = list(islice(raw, LOOK_AT if limit is None else min(limit, LOOK_AT)))
    row = typical((row for _, row in first), names)
    if row is None:
        raise DataError(_nothing(name, split, bad))
    columns = columns_of(row, wanted, name, names)
    added = extra_columns((row for _, row in first), columns, extra, name)
    for where, row in chain(first, raw):
        for clean in clean_rows(row, columns, f"{name}: {where}", bad):
            kept += 1
            yield {column: row.get(column) for column in added} | clean
            if kept == limit:
                break
        if kept == limit:
            break
    if bad:
        _log.warning("%s, split %s: skipped %s", name, split, _reasons(bad))
    if kept == 0:
        raise DataError(_nothing(name, split, bad))


def skip_notice(split: str, skipped: Counter[str]) -> str | None:
    """Return a notice of the rows that :func:`open_rows` skipped, by reason; None: it skipped none."""
    return f"{skipped.total()} rows of {split} skipped: {_reasons(skipped)}" if skipped else None


def read_columns(
    name: str,
    split: str,
    needs: Iterable[str],
    *,
    config: str | None = None,
    revision: str | None = None,
    streaming: bool = True,
    names: Mapping[str, str] | None = None,
) -> Columns:
    """Find how the columns of a source are used, from its first rows.

    Raises:
        DataError: as :func:`open_rows`.
    """
    rows = _raw_rows(name, split, config=config, revision=revision, streaming=streaming, seed=0, names=names)
    columns = look_at(rows, needs, name, names)
    if columns is None:
        raise DataError(_nothing(name, split, Counter()))
    return columns


def text_columns(
    name: str,
    split: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    names: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Return those of :data:`TEXT_COLUMNS` that the source has, by its first row; the question is among them.

    Raises:
        DataError: no such source or split, unreadable, no row, or no question.
    """
    raw = _raw_rows(name, split, config=config, revision=revision, streaming=True, seed=0, names=names)
    row = typical((row for _, row in islice(raw, LOOK_AT)), names)
    if row is None:
        raise DataError(_nothing(name, split, Counter()))
    columns_of(row, ("question",), name, names)
    return available(row, names)


def unique_questions(
    rows: Iterable[_Row], besides: Callable[[_Row], str] = lambda _: "", repeated: Callable[[], None] = lambda: None
) -> Iterator[_Row]:
    """Yield the first row of every question, by :func:`.splits.same_text`. Memory: a 64-bit hash per question.

    Args:
        rows: with a question each.
        besides: what keeps rows of one question apart.
        repeated: called for every other row.
    """
    digests: set[int] = set()
    for row in rows:
        digest = stable_hash(same_text(row["question"]), besides(row))
        if digest in digests:
            repeated()
        else:
            digests.add(digest)
            yield row


def _raw_rows(
    name: str,
    split: str,
    *,
    config: str | None,
    revision: str | None,
    streaming: bool,
    seed: int,
    names: Mapping[str, str] | None,
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (position, row as read)."""
    if kind_of(name) != "hub":
        yield from local_rows(name, split, names, seed=seed)
        return
    for number, row in read_hub(name, split, config=config, revision=revision, streaming=streaming):
        yield f"row {number}", row


def _nothing(name: str, split: str, bad: Counter[str]) -> str:
    if bad:
        return f"{name}: no usable row in split {split}: {_reasons(bad)}."
    hint = "" if split == ALL or kind_of(name) == "hub" else f" Use all of a small file with the split `{ALL}`."
    return f"{name}: no row in split {split}.{hint}"


def _reasons(bad: Counter[str]) -> str:
    return ", ".join(f"{count} × {why}" for why, count in bad.items())
