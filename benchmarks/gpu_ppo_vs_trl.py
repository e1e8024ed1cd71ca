"""PPO here against TRL 1.12.0's on one GPU: the same weights, prompts and lengths, in processes of their own, in turns.

    python -m venv trl && trl/bin/pip install torch trl==1.12.0 transformers peft accelerate
    python benchmarks/gpu_ppo_vs_trl.py --trl-python trl/bin/python          # 4 minutes at most; run again to resume
    python benchmarks/gpu_ppo_vs_trl.py --trl-python trl/bin/python --rounds 3
    python benchmarks/gpu_ppo_vs_trl.py --tiny                               # a tiny model on the CPU

128 responses of 127 tokens to prompts of 511, micro-batches of 16, four epochs, LoRA r 16 on all matrices, bfloat16
with autocast on both sides (``GPU`` in ``ppo_work.py``). TRL's value model is a whole model that is trained, as in its
own examples; ours is an adapter on the shared base, and once more the policy's states (``value_adapter: false``).
A first step warms each process up. Wanted: with a critic of our own 2.5 × TRL's samples per second at 0.6 × its memory.
Results are ``docs/measurements/gpu-ppo-vs-trl.jsonl``, a line per turn, and a table, ``gpu-ppo-vs-trl.md``.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import gpu_work
import ppo_work
from gpu_results import Results, Row, header, identity, number, write_table

_HERE = Path(__file__).resolve().parent
_NAME = "gpu-ppo-vs-trl"
_OURS = {"ours, own critic": "value_adapter=true", "ours, critic on the policy's states": "value_adapter=false"}
_TRL = "TRL 1.12.0"
_WANTED = {"ours, own critic": (2.5, 0.6)}
"""At least so many times TRL's samples per second, at most so much of its memory."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 when a side failed or a bound is not kept."""
    options = _options(arguments)
    if options.worker:
        measure_model(options)
        return 0
    more = ["--rounds", options.rounds, "--batches", options.batches]
    more += ["--trl-python", options.trl_python] if options.trl_python else []
    return gpu_work.start(options, Path(__file__), more, write)


def measure_model(options: argparse.Namespace) -> None:
    """Take turns until all are done or the time is over."""
    deadline = gpu_work.Deadline(options.seconds)
    model = options.worker
    results = Results(options.out / f"{_NAME}.jsonl", identity(gpu_work.device_name(options)))
    sides = [*(list(_OURS)[:1] if options.tiny else _OURS), *([_TRL] if options.trl_python else [])]
    if not options.trl_python:
        print(f"{_TRL} skipped: name its interpreter with `--trl-python`", flush=True)
    turns = [
        (number_, side)
        for number_ in range(1, options.rounds + 1)
        for side in random.Random(number_).sample(sides, len(sides))
    ]
    wanted = [turn for turn in turns if results.find(_cell(model, *turn)) is None]
    folder = options.work / model
    if wanted:
        _prepare(folder, model, options.batches)
    longest = 0.0
    for at, turn in enumerate(wanted):
        if not deadline.allows(longest):
            print(f"{model}: {len(wanted) - at} turns are left; run it again", flush=True)
            return
        began = time.monotonic()
        print(f"{_cell(model, *turn)} …", flush=True)
        values = _turn(turn[1], folder, model, options)
        results.add(_cell(model, *turn), {"model": model, "side": turn[1], **values})
        longest = max(longest, time.monotonic() - began)


def _cell(model: str, number_: int, side: str) -> str:
    return f"{model}, round {number_}, {side}"


def _prepare(folder: Path, model: str, batches: int) -> None:
    """Write what all sides read, unless it is there."""
    mark = folder / f"complete-{batches}"
    if not mark.exists():
        folder.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, _HERE / "ppo_ours.py", folder, batches + 1, "--prepare", "--model", model]
        subprocess.run([str(word) for word in words], check=True)
        mark.touch()


def _turn(side: str, folder: Path, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a side, and return what it reports, or the end of what it printed."""
    if side == _TRL:
        words = [options.trl_python, _HERE / "ppo_trl_1_12.py", folder, options.batches]
    else:
        words = [sys.executable, _HERE / "ppo_ours.py", folder, options.batches, _OURS[side]]
    words += ["--model", model]
    # our packages are not TRL's: its interpreter finds its own
    environment = {name: value for name, value in os.environ.items() if side != _TRL or name != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=environment)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"failure": " ".join(done.stderr.split())[-300:] or f"exit code {done.returncode}"}
    return {"packages" if name == "versions" else name: value for name, value in json.loads(lines[-1]).items()}


def write(options: argparse.Namespace) -> bool:
    """Write the table; return whether something failed or a bound is not kept."""
    results = Results(options.out / f"{_NAME}.jsonl", identity(gpu_work.device_name(options)))
    rows = list(results.newest().values())
    lines = header("PPO here and by TRL 1.12.0", "benchmarks/gpu_ppo_vs_trl.py", results)
    lines += ["| | turns | s per step | samples/s | peak GiB | × samples/s | × peak |", "|---" * 7 + "|"]
    failed = not rows
    for model in dict.fromkeys(row["model"] for row in rows):
        of_model = [row for row in rows if row["model"] == model]
        sides = {side: _medians(model, of_model, side) for side in (*_OURS, _TRL)}
        lines += [_line(model, side, values, sides[_TRL]) for side, values in sides.items() if values]
        failed |= not options.tiny and any(_is_missed(sides, side) for side in _WANTED)
    failures = [row for row in rows if "failure" in row]
    lines += ["", *(f"{row['cell']} failed: {row['failure']}" for row in failures)]
    write_table(options.out / f"{_NAME}.md", lines)
    return failed or bool(failures)


def _medians(model: str, rows: list[Row], side: str) -> dict[str, Any] | None:
    measured = [row for row in rows if row["side"] == side and "failure" not in row]
    if not measured:
        return None
    seconds = median(value for row in measured for value in row["seconds"])
    peaks = [row["allocated"] for row in measured if row["allocated"]]
    return {
        "turns": len(measured),
        "seconds": seconds,
        "samples": ppo_work.GPU[model].batch / seconds,
        "peak": median(peaks) if peaks else None,
    }


def _ratios(values: dict[str, Any], theirs: dict[str, Any] | None) -> tuple[float | None, float | None]:
    """Return samples per second and peak memory in relation to TRL's."""
    if theirs is None:
        return None, None
    memory = values["peak"] / theirs["peak"] if values["peak"] and theirs["peak"] else None
    return theirs["seconds"] / values["seconds"], memory


def _is_missed(sides: dict[str, dict[str, Any] | None], side: str) -> bool:
    """Return whether a side was measured against TRL's and misses what is wanted of it."""
    values = sides[side]
    speed, memory = _ratios(values, sides[_TRL]) if values else (None, None)
    least, most = _WANTED[side]
    return (speed is not None and speed < least) or (memory is not None and memory > most)


def _line(model: str, side: str, values: dict[str, Any], theirs: dict[str, Any] | None) -> str:
    speed, memory = _ratios(values, theirs) if side != _TRL else (None, None)
    wanted = _WANTED.get(side)
    columns = [
        f"{model}, {side}",
        str(values["turns"]),
        number(values["seconds"]),
        number(values["samples"]),
        number(values["peak"] / (1 << 30) if values["peak"] else None),
        number(speed) + (f" (wanted ≥ {wanted[0]:g})" if wanted else ""),
        number(memory) + (f" (wanted ≤ {wanted[1]:g})" if wanted else ""),
    ]
    return f"| {' | '.join(columns)} |"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = gpu_work.parser("PPO here against TRL 1.12.0 on a GPU.", ["0.9b"])
    parser.add_argument("--trl-python", type=Path, help="interpreter of an environment with TRL 1.12.0")
    parser.add_argument("--rounds", type=int, default=2, help="each side once in each")
    parser.add_argument("--batches", type=int, default=2, help="steps that count in each turn, after one to warm up")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.rounds = options.batches = 1
    return options


if __name__ == "__main__":
    sys.exit(main())
