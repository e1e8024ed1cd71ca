"""Results of GPU benchmarks as JSON lines, written as they come, so that a run that was cut off resumes where it was.

A row belongs to a card, to versions of libraries and to the engine's sources. Rows of another of these stay in the file
and are not taken for today's: such a cell is measured again.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
Row = dict[str, Any]


class Results:
    """The rows of one benchmark on one machine.

    Args:
        path: of the file; its directory is made.
        identity: what a row must have been measured with to count.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.identity = dict(identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = [row for row in read_rows(path) if self._is_of_today(row)]

    def find(self, cell: str) -> Row | None:
        """Return a cell's row; None where it was not measured yet, or failed or was skipped, which is tried again."""
        row = self.newest().get(cell)
        return row if row is not None and _is_measured(row) else None

    def add(self, cell: str, values: Mapping[str, Any]) -> None:
        """Append a cell's row, and print it."""
        row = {"cell": cell, **values}
        self.rows.append(row | self.identity)
        _end_last_line(self.path)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | self.identity) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(json.dumps(row), flush=True)

    def newest(self) -> dict[str, Row]:
        """Return the newest row of each cell, in the order of first rows; a failure only where nothing was measured."""
        kept: dict[str, Row] = {}
        for row in self.rows:
            before = kept.get(row["cell"])
            if before is None or _is_measured(row) or not _is_measured(before):
                kept[row["cell"]] = row
        return kept

    def _is_of_today(self, row: Row) -> bool:
        return all(row.get(name) == value for name, value in self.identity.items())


def read_rows(path: Path) -> list[Row]:
    """Read all rows of a file; a last line that was cut off in writing is none."""
    if not path.exists():
        return []
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def identity(device: str) -> dict[str, Any]:
    """Return what rows of today have in common: card, versions, and a digest of the engine's sources."""
    return {"device": device, "versions": versions(*_LIBRARIES), "engine": _engine_digest()}


def versions(*names: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def header(title: str, command: str, results: Results) -> list[str]:
    """Return the first lines of a table for people."""
    packages = ", ".join(f"{name} {version}" for name, version in results.identity["versions"].items())
    return [
        f"# {title}: {results.identity['device']}",
        "",
        f"Written by `{command}` from `{results.path.name}`; {packages}; engine sources {results.identity['engine']}.",
        "",
    ]


def write_table(path: Path, lines: list[str]) -> None:
    """Write a table for people, and print it."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines), flush=True)


def number(value: float | None, digits: str = ".2f") -> str:
    """Format a cell of a table; a dash for what was not measured."""
    return "–" if value is None else format(value, digits)


def _is_measured(row: Row) -> bool:
    return "failure" not in row and "skipped" not in row


def _end_last_line(path: Path) -> None:
    """End a line that was cut off, so that the next one is readable."""
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")


def _engine_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted((ROOT / "engine").rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
