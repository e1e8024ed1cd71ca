"""Rows of CSV and TSV files: the first line names the columns, and every value is text.

Quoting is that of RFC 4180 for both; a quoted value may contain line breaks.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from ..contract.errors import DataError

_LONGEST_VALUE = 1 << 26  # bytes; the module's own limit is 128 KiB


def read_csv(path: Path, file: BinaryIO, delimiter: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield (first line of the row, row).

    Args:
        path: the file, for errors.
        file: opened.
        delimiter: a comma or a tab.

    Raises:
        DataError: not UTF-8, bad quotes, or a row with another number of values than the header; names the line.
    """
    csv.field_size_limit(_LONGEST_VALUE)
    kind = "TSV" if delimiter == "\t" else "CSV"
    header: list[str] | None = None
    number = 1
    with file:
        lines = csv.reader(_decoded(path, file), delimiter=delimiter, strict=True)
        while True:
            try:
                values = next(lines, None)
            except csv.Error as error:
                raise DataError(f"{path}: line {number}: not {kind}: {error}.") from None
            if values is None:
                return
            if values and header is None:
                header = _checked(path, values)
            elif values and header is not None:
                if len(values) != len(header):
                    raise DataError(
                        f"{path}: line {number} has {len(values)} values, and the header {len(header)} columns."
                    )
                yield number, dict(zip(header, values, strict=True))
            number = lines.line_num + 1


def _decoded(path: Path, file: BinaryIO) -> Iterator[str]:
    """Yield lines with their ends; decoded one by one, so that an error names its line.

    Raises:
        DataError: one is not UTF-8.
    """
    line = 1
    for block in file:
        try:
            text = block.decode("utf-8-sig" if line == 1 else "utf-8")
        except UnicodeDecodeError as error:
            line += block[: error.start].count(b"\r")
            raise DataError(f"{path}: line {line}: not UTF-8: {error.reason}; save the file as UTF-8.") from None
        for part in io.StringIO(text, newline=""):  # a line may also end in "\r" alone
            yield part
            line += 1


def _checked(path: Path, header: list[str]) -> list[str]:
    if twice := [name for name in header if header.count(name) > 1]:
        raise DataError(f"{path}: two columns are called {twice[0]!r}; rename one of them.")
    return header
