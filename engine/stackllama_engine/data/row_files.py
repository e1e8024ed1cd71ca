"""Streaming readers of local files: JSON Lines, a JSON array, CSV, TSV, Parquet, Arrow; the first four also compressed.

A reader yields (position, row); the position is the line of a JSON Lines, CSV or TSV file and the row's number, from 1,
elsewhere. All are read in bounded memory but a JSON array, which must be read whole and is refused over 256 MiB.
"""

import gzip
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from ..contract.errors import DataError
from ..contract.user_files import decode_json, open_file
from .arrow_files import count_parquet_rows, open_zstd, read_arrow, read_parquet
from .csv_files import read_csv
from .kinds import format_of

Row = Mapping[str, Any]

_LONGEST_LINE = 1 << 26  # bytes
_LARGEST_ARRAY = 1 << 28  # bytes
_BOM = b"\xef\xbb\xbf"
_BY_LINE = (".jsonl", ".csv", ".tsv")


def read_file(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a file of one of :data:`.kinds.SUFFIXES`.

    Raises:
        DataError: unreadable or malformed; names the line. Other suffixes were refused by :func:`.kinds.kind_of`.
    """
    suffix, _ = format_of(path)
    number = 0
    try:
        if suffix == ".parquet":
            yield from read_parquet(path)
        elif suffix == ".arrow":
            yield from read_arrow(path)
        else:
            with _opened(path) as file:
                for number, row in _rows_of_text(path, file, suffix):
                    yield number, row
    except (EOFError, zlib.error) as error:
        raise _damaged(path, number, error) from None
    except OSError as error:
        if number and format_of(path)[1]:
            raise _damaged(path, number, error) from None
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


def position_of(path: Path, number: int) -> str:
    """Return a position that :func:`read_file` yields in words: ``line 3``."""
    return f"{'line' if format_of(path)[0] in _BY_LINE else 'row'} {number}"


def count_rows(path: Path) -> int | None:
    """Return the number of rows of a Parquet file, from its footer; None for a file that would have to be read.

    Raises:
        DataError: not a readable Parquet file.
    """
    return count_parquet_rows(path) if path.suffix == ".parquet" else None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    match format_of(path)[1]:
        case ".gz":
            with open_file(path) as packed, gzip.GzipFile(fileobj=packed) as file:
                yield cast("BinaryIO", file)
        case ".zst":
            with open_zstd(path) as file:
                yield file
        case _:
            with open_file(path) as file:
                yield file


def _damaged(path: Path, number: int, error: Exception) -> DataError:
    return DataError(f"{path}: the compressed file is damaged after line {number}: {error}.")


def _rows_of_text(path: Path, file: BinaryIO, suffix: str) -> Iterator[tuple[int, Row]]:
    if suffix in (".csv", ".tsv"):
        return read_csv(path, file, "," if suffix == ".csv" else "\t")
    if suffix == ".json" and _is_array(path):
        return _array(path, file)
    return _lines(path, file)


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, Row]]:
    decode = msgspec.json.Decoder().decode
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE:
            raise DataError(f"{path}: line {number} is longer than 64 MiB; JSON Lines needs one object per line.")
        line = line.removeprefix(_BOM) if number == 1 else line
        if not line.strip():
            continue
        try:
            row = decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"{path}: line {number}: not JSON: {error}.") from None
        yield number, _object(row, path, f"line {number}")


def _is_array(path: Path) -> bool:
    with _opened(path) as file:
        return file.read(4096).removeprefix(_BOM).lstrip().startswith(b"[")


def _array(path: Path, file: BinaryIO) -> Iterator[tuple[int, Row]]:
    data = file.read(_LARGEST_ARRAY + 1)
    if len(data) > _LARGEST_ARRAY:
        raise DataError(
            f"{path}: a JSON array over 256 MiB cannot be streamed; convert it to .jsonl, one object per line."
        )
    try:
        rows = decode_json(data.removeprefix(_BOM), list[Any])
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}.") from None
    for number, row in enumerate(rows, 1):
        yield number, _object(row, path, f"row {number}")


def _object(row: Any, path: Path, where: str) -> Row:
    if isinstance(row, dict):
        return cast("Row", row)
    raise DataError(f"{path}: {where}: expected an object with named columns, got {type(row).__name__}.")
