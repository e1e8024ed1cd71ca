"""Rows of Parquet and Arrow files, and zstd, through pyarrow, which is imported only here and only when needed.

An ``.arrow`` file is a stream (as ``datasets`` writes it, in its cache and with ``save_to_disk``) or an Arrow file.
"""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..contract.errors import DataError, how_to_install
from ..contract.user_files import open_file

Row = Mapping[str, Any]

_BATCH_ROWS = 256
_FILE_MAGIC = b"ARROW1"


def read_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield (number from 1, row).

    Raises:
        DataError: not a readable Parquet file, or damaged; names the last good row.
    """
    yield from _rows(path, _open_parquet(path).iter_batches(batch_size=_BATCH_ROWS, use_threads=False), "Parquet")


def count_parquet_rows(path: Path) -> int:
    """Return the number of rows, from the footer.

    Raises:
        DataError: not a readable Parquet file.
    """
    return int(_open_parquet(path).metadata.num_rows)


def read_arrow(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield (number from 1, row).

    Raises:
        DataError: not a readable Arrow file, or damaged; names the last good row.
        OSError: it cannot be opened.
    """
    arrow = _pyarrow(path, "Arrow")
    with open_file(path) as file:
        is_file = file.read(len(_FILE_MAGIC)) == _FILE_MAGIC
        file.seek(0)
        try:
            batches: Iterator[Any]
            if is_file:
                reader = arrow.ipc.open_file(file)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            else:
                batches = iter(arrow.ipc.open_stream(file))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not an Arrow file: {error}.") from None
        yield from _rows(path, batches, "Arrow")


def open_zstd(path: Path) -> BinaryIO:
    """Open a zstd-compressed file; reading a damaged one is an OSError.

    Raises:
        DataError: pyarrow is not installed.
        OSError: it cannot be opened.
    """
    return io.BufferedReader(_pyarrow(path, "zstd").CompressedInputStream(open_file(path), "zstd"))


def _rows(path: Path, batches: Iterator[Any], kind: str) -> Iterator[tuple[int, Row]]:
    number = 0
    while True:
        try:
            batch = next(batches, None)
            rows = [] if batch is None else batch.to_pylist()
        except (OSError, ValueError) as error:  # Arrow's errors and bad UTF-8 are ValueErrors
            raise DataError(f"{path}: the {kind} file is damaged after row {number}: {error}.") from None
        if batch is None:
            return
        for row in rows:
            number += 1
            yield number, row


def _open_parquet(path: Path) -> Any:
    arrow = _pyarrow(path, "Parquet")
    try:
        # Without both options whole column chunks are held in memory, which grows with the file (measured).
        return arrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except arrow.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file: {error}.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from None


def _pyarrow(path: Path, kind: str) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{path}: reading {kind} needs pyarrow: {how_to_install('train')}, or use a .jsonl file."
        ) from None
    return pyarrow
