"""Which runs ``runs ls`` lists, in which order and columns: the options that the list of the console has as keys."""

import argparse
import time

from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.run_dir import Home

from ..readers.run_columns import COLUMNS, arranged
from ..readers.run_filter import parse_filter
from ..readers.run_row import Row
from ..readers.runs_index import RunsIndex

_BY_NAME = {name.lower(): name for name in COLUMNS}


def wanted_rows(home: Home, arguments: argparse.Namespace) -> list[Row] | None:
    """Return the rows that the options ask for, oldest first unless they are sorted; None without such options.

    Raises:
        UsageError: the filter makes no sense, or there is no such column.
    """
    if not (arguments.filter or arguments.sort or arguments.columns):
        return None
    wanted = parse_filter(arguments.filter or "")
    if wanted.error:
        raise UsageError(f"--filter: {wanted.error}.")
    index = RunsIndex(home)
    index.poll()
    now = time.time()
    rows = [row for row in reversed(arranged(index.rows, "", "none", now)) if wanted.passes(row, now)]
    if arguments.sort:
        column = COLUMNS[_column("--sort", arguments.sort)]
        rows.sort(key=lambda row: row.id)
        descending = column.right != arguments.reverse
        rows = arranged(rows, f"{'-' if descending else ''}{column.name}", "none", now)
    elif arguments.reverse:
        rows.reverse()
    return rows


def table_of(rows: list[Row], columns: str) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of the columns named, separated by commas.

    Raises:
        UsageError: there is no such column.
    """
    names = [_column("--columns", name) for name in columns.split(",")]
    now = time.time()
    return [name.upper() for name in names], [[_text(row, name, now) for name in names] for row in rows]


def _text(row: Row, name: str, now: float) -> str:
    return row.id if name == "run" else COLUMNS[name].text(row, now)  # commands take ids


def _column(option: str, name: str) -> str:
    if name.strip().lower() not in _BY_NAME:
        raise UsageError(f"{option} {name}: expected one of {', '.join(_BY_NAME)}.")
    return _BY_NAME[name.strip().lower()]
