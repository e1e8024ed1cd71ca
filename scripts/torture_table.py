"""The counts of `make torture` as a table in docs/reliability.md.

    python scripts/torture_table.py build/torture.jsonl
    python scripts/torture_table.py --tiny                # prints a table of two trials; the document stays

Exit code 1 when a trial was not good.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- counts: written by `make torture` -->\n", "<!-- end of counts -->\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Replace the table; of several runs of the suite in one file the trials are added up."""
    parser = argparse.ArgumentParser(description="Write the counts of `make torture` into docs/reliability.md.")
    parser.add_argument("results", nargs="?", type=Path, help="JSON lines with case, what, trials and good")
    parser.add_argument("--tiny", action="store_true", help="two trials that are written here; nothing is changed")
    options = parser.parse_args(arguments)
    if options.tiny:
        rows: list[dict[str, Any]] = [{"case": 1, "what": "a try", "trials": 2, "good": 2}]
    elif options.results is not None:
        rows = [json.loads(line) for line in options.results.read_text().splitlines()]
    else:
        parser.error("name the results")
    table = _table(rows)
    before, begin, rest = DOCUMENT.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        parser.error(f"{DOCUMENT} lacks the marks between which the table stands")
    if not options.tiny:
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
    sys.exit(main())
