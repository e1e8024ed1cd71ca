"""The counts of `make torture` as a table in docs/reliability.md: ``python torture_table.py build/torture.jsonl``.

Ends with 1 when a trial was not good.
"""

import json
import os
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- counts: written by `make torture` -->\n", "<!-- end of counts -->\n"


def main(arguments: list[str]) -> int:
    """Replace the table; of several runs of the suite in one file the trials are added up."""
    rows = [json.loads(line) for line in Path(arguments[0]).read_text().splitlines()]
    table = _table(rows)
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(before + BEGIN + table + END + after)
    sys.stdout.write(table)
    return int(any(row["good"] != row["trials"] for row in rows))


def _table(rows: list[dict[str, Any]]) -> str:
    trials, good, runs = Counter[tuple[int, str]](), Counter[tuple[int, str]](), Counter[tuple[int, str]]()
    for row in rows:
        key = (row["case"], row["what"])
        trials[key] += row["trials"]
        good[key] += row["good"]
        runs[key] += 1
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    lines = [
        f"{time.strftime('%d %B %Y')}, {machine}, no GPU.",
        "",
        "| case | what was tried | good | in runs |",
        "|---|---|---|---|",
        *(f"| {key[0]} | {key[1]} | {good[key]} of {trials[key]} | {runs[key]} |" for key in sorted(trials)),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
