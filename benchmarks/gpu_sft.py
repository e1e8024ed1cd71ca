"""SFT on one GPU: tokens per second here, with and without masks, by TRL's SFTTrainer alone, and by Unsloth.

    python benchmarks/gpu_sft.py                                  # 7B and 0.9B; 4 minutes each at most; resumes
    python benchmarks/gpu_sft.py --models 7b --precisions bf16 --work /data
    python benchmarks/gpu_sft.py --unsloth-python unsloth/bin/python
    python benchmarks/gpu_sft.py --tiny                           # a tiny model on the CPU; no results are kept

LoRA r 16 on all matrices, rows of 1,024 packed tokens, 4 rows × 2 per step, no gradient checkpointing, bfloat16
autocast; each side in a process of its own (``sft_side.py``). The floor has no recomputed passes (``floor.py``), at the
rates that a product and a copy attain on the same card. Wanted: 7B in bf16 at 12,000 tokens per second.
Results are ``docs/measurements/gpu-sft.jsonl``, a line per side as it comes, and a table, ``gpu-sft.md``.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu_work
import sft_side
from gpu_results import Results, Row, header, identity, number, write_table

_NAME = "gpu-sft"
_WANTED = 12_000
"""Tokens per second of a 7B in bf16, on an H100 or H200."""
_WANTED_CELL = "7b, bf16, ours"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 when a side failed or the bound is not kept."""
    options = _options(arguments)
    if options.worker:
        measure_model(options)
        return 0
    more = ["--precisions", *options.precisions, "--unsloth-python", options.unsloth_python]
    return gpu_work.start(options, Path(__file__), more, write)


def measure_model(options: argparse.Namespace) -> None:
    """Measure a model's sides one after another until the time is over."""
    deadline = gpu_work.Deadline(options.seconds)
    model = options.worker
    results = Results(options.out / f"{_NAME}.jsonl", identity(gpu_work.device_name(options)))
    cells = [(precision, side) for precision in options.precisions for side in sft_side.SIDES]
    wanted = [cell for cell in cells if results.find(_cell(model, *cell)) is None]
    longest = 0.0
    for at, cell in enumerate(wanted):
        if not deadline.allows(longest):
            print(f"{model}: {len(wanted) - at} cells are left; run it again", flush=True)
            return
        began = time.monotonic()
        print(f"{_cell(model, *cell)} …", flush=True)
        results.add(_cell(model, *cell), {"model": model, **_side(*cell, model, options)})
        longest = max(longest, time.monotonic() - began)


def _cell(model: str, precision: str, side: str) -> str:
    return f"{model}, {precision}, {side}"


def _side(precision: str, side: str, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a side, and return what it reports, or the end of what it printed."""
    python = options.unsloth_python if side == "Unsloth" else sys.executable
    words = [python, Path(sft_side.__file__), side, options.work / f"sft-{model}", "--model", model]
    words += ["--precision", precision, *(["--tiny"] if options.tiny else [])]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"failure": " ".join(done.stderr.split())[-300:] or f"exit code {done.returncode}"}
    return json.loads(lines[-1])


def write(options: argparse.Namespace) -> bool:
    """Write the table; return whether a side failed or the bound is not kept."""
    results = Results(options.out / f"{_NAME}.jsonl", identity(gpu_work.device_name(options)))
    rows = list(results.newest().values())
    lines = header("SFT, LoRA, packed", "benchmarks/gpu_sft.py", results)
    lines += ["| | tokens/s | of the floor | s per step | peak GiB |", "|---" * 5 + "|", *(_line(row) for row in rows)]
    write_table(options.out / f"{_NAME}.md", lines)
    bound = results.find(_WANTED_CELL)
    missed = bound is not None and bound["tokens_per_second"] < _WANTED
    return not rows or missed or any("failure" in row for row in rows)


def _line(row: Row) -> str:
    if reason := row.get("failure") or row.get("skipped"):
        return f"| {row['cell']} | {reason.replace('|', '/')} | | | |"
    columns = [
        row["cell"],
        number(row["tokens_per_second"], ",.0f") + (f" (wanted ≥ {_WANTED:,})" if row["cell"] == _WANTED_CELL else ""),
        number(row["share_of_floor"], ".0%"),
        number(row["seconds_per_step"]),
        number(row["peak"] / (1 << 30) if row["peak"] else None),
    ]
    return f"| {' | '.join(columns)} |"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = gpu_work.parser("SFT on a GPU here, by TRL and by Unsloth.", ["7b", "0.9b"])
    parser.add_argument("--precisions", nargs="+", default=list(sft_side.PRECISIONS), choices=sft_side.PRECISIONS)
    parser.add_argument("--unsloth-python", type=Path, default=sys.executable, help="interpreter that has Unsloth")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.precisions = ["bf16"]
    return options


if __name__ == "__main__":
    sys.exit(main())
