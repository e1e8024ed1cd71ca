"""Streaming readers of local files: JSON Lines, a JSON array, Parquet.

A reader yields (position, row); the position is the line of a JSON Lines file and the row's number, from 1, elsewhere.
JSON Lines and Parquet are read in bounded memory; a JSON array must be read whole and is refused over 256 MiB.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..contract.errors import DataError, how_to_install
from ..contract.user_files import decode_json, open_file, read_bytes

Row = Mapping[str, Any]

_LONGEST_LINE = 1 << 26  # bytes
_LARGEST_ARRAY = 1 << 28  # bytes
_BATCH_ROWS = 256


def read_file(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a ``.jsonl``, ``.json`` or ``.parquet`` file.

    Raises:
        DataError: unreadable or malformed; names the line. Other suffixes were refused by :func:`.kinds.kind_of`.
    """
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path)
        elif path.suffix == ".json" and _is_array(path):
            yield from _array(path)
        else:
            yield from _lines(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


def count_rows(path: Path) -> int | None:
    """Return the number of rows of a Parquet file, from its footer; None for a file that would have to be read.

    Raises:
        DataError: not a readable Parquet file.
    """
    return int(_open_parquet(path).metadata.num_rows) if path.suffix == ".parquet" else None


def _lines(path: Path) -> Iterator[tuple[int, Row]]:
    decode = msgspec.json.Decoder().decode
    with open_file(path) as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if len(line) == _LONGEST_LINE:
                raise DataError(f"{path}: line {number} is longer than 64 MiB; JSON Lines needs one object per line.")
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.strip():
                continue
            try:
                row = decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise DataError(f"{path}: line {number}: not JSON: {error}.") from None
            yield number, _object(row, path, f"line {number}")


def _is_array(path: Path) -> bool:
    with open_file(path) as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _array(path: Path) -> Iterator[tuple[int, Row]]:
    if path.stat().st_size > _LARGEST_ARRAY:
        raise DataError(
            f"{path}: a JSON array over 256 MiB cannot be streamed; convert it to .jsonl, one object per line."
        )
    try:
        rows = decode_json(read_bytes(path, _LARGEST_ARRAY).removeprefix(b"\xef\xbb\xbf"), list[Any])
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}.") from None
    for number, row in enumerate(rows, 1):
        yield number, _object(row, path, f"row {number}")


def _object(row: Any, path: Path, where: str) -> Row:
    if isinstance(row, dict):
        return row
    raise DataError(f"{path}: {where}: expected an object with named columns, got {type(row).__name__}.")


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    batches = _open_parquet(path).iter_batches(batch_size=_BATCH_ROWS, use_threads=False)
    number = 0
    while True:
        try:
            batch = next(batches, None)
            rows = [] if batch is None else batch.to_pylist()
        except (OSError, ValueError) as error:  # Arrow's errors and bad UTF-8 are ValueErrors
            raise DataError(f"{path}: the Parquet file is damaged after row {number}: {error}.") from None
        if batch is None:
            return
        for row in rows:
            number += 1
            yield number, row


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow: {how_to_install('train')}, or use a .jsonl file."
        ) from None
    try:
        # Without both options whole column chunks are held in memory, which grows with the file (measured).
        return pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file: {error}.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from None
