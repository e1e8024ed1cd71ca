"""PPO here against the last two PPO trainers of TRL: the same work, each in a process and environment of its own.

    python benchmarks/ppo_vs_trl.py                       # three rounds; builds two environments first (2 GB)
    python benchmarks/ppo_vs_trl.py --rounds 5 --json
    python benchmarks/ppo_vs_trl.py --sides ours trl-0.11.4 --environments FOLDER
    python benchmarks/ppo_vs_trl.py --tiny                # a tiny model; sides of TRL only where they are built

What is done is in ``ppo_work.py``. In every round each side runs once, in another order each time: a batch to warm up,
then the batches that count. Printed are medians over all of them, and ours in relation to each. Threads sleep while
they wait for each other rather than spin (the same for all sides), so that on a machine that others use as well the
processor seconds count work; *seconds* are by the clock and hold only on a quiet one. Ours has the memory settings that
every run on a CPU is launched with (``CPU_MEMORY``). *Peak* is the whole process's largest resident set; *above the
libraries* is without what it was before the first model was loaded.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ppo_work
from ppo_work import FULL, TINY, Work

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "engine"))

from stackllama_engine.launch.argv import CPU_MEMORY  # noqa: E402

ENVIRONMENTS = {
    "trl-0.11.4": [
        "trl==0.11.4",
        "transformers==4.45.2",
        "peft==0.13.2",
        "accelerate==1.0.1",
        "numpy<2",
        "pyarrow<19",
        "datasets<3.3",
        "rich",
    ],
    "trl-1.12.0": ["trl==1.12.0", "transformers", "peft", "accelerate"],
}
TORCH = "torch==2.13.0"
WANTED = {
    ("ours", "trl-0.11.4"): (None, 0.8),
    ("ours", "trl-1.12.0"): (2.2, 0.45),
    ("ours, detached head", "trl-0.11.4"): (1.7, 0.8),
    ("ours, detached head", "trl-1.12.0"): (2.2, 0.45),
    ("ours, detached head", "ours"): (None, None),
    ("ours, bf16 autocast", "trl-1.12.0"): (3.2, None),
    ("ours, detached head, bf16", "trl-0.11.4"): (3.7, None),
    ("ours, detached head, bf16", "trl-1.12.0"): (5.1, None),
}
"""At least so many times the samples per second, at most so much of the memory. TRL 0.11.4 has no critic of its own
either: against it speed is held with the head on the policy's states, which costs no pass of its own."""
OURS = {
    "ours": (),
    "ours, detached head": ("value_adapter=false",),
    "ours, bf16 autocast": ("bf16=true", "dtype=bfloat16"),
    "ours, detached head, bf16": ("value_adapter=false", "bf16=true", "dtype=bfloat16"),
}
"""Our sides, and what each changes of the recipe."""
SIDES = [*OURS, *ENVIRONMENTS]
_MATMUL = """
import json, time, torch
torch.set_num_threads({threads})
speed = {{}}
for dtype in (torch.float32, torch.bfloat16):
    x, w, best = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype), [1e9, 1e9]
    for _ in range(30):
        clocks = time.perf_counter(), time.process_time()
        x @ w
        now = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
        best = [min(pair) for pair in zip(best, now)]
    speed[str(dtype)[6:]] = [2 * 2048**3 / seconds for seconds in best]
print(json.dumps(speed))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, run, print; 1 when a bound is not kept."""
    options = _options(arguments)
    work = TINY if options.tiny else FULL
    sides = [side for side in options.sides if _is_available(side, options)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepared = [folder, options.batches + 1, "--prepare", *_tiny(options)]
        call([sys.executable, HERE / "ppo_ours.py", *prepared])
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        speeds: list[dict[str, Any]] = []
        for number in range(options.rounds):
            speeds.append(call([sys.executable, "-c", _MATMUL.format(threads=ppo_work.THREADS)]))
            for side in random.Random(number).sample(sides, len(sides)):
                load = os.getloadavg()[0]
                runs[side].append(call(command(side, options, folder)) | {"load": load})
                print(f"round {number + 1}, {side}: {_brief(runs[side][-1])}", file=sys.stderr, flush=True)
    document = summary(runs, speeds, work)
    print(json.dumps(document | {"runs": runs}, indent=2) if options.json else table(document))
    return 0 if options.tiny or all(row["met"] for row in document["ratios"]) else 1


def _is_available(side: str, options: argparse.Namespace) -> bool:
    """Return whether a side can run; its environment is built first, except with ``--tiny``."""
    if side not in ENVIRONMENTS:
        return True
    path = options.environments / side
    if not options.tiny:
        build(path, ENVIRONMENTS[side])
    elif not (path / "complete").exists():
        print(f"{side} skipped: {path} is not built (without --tiny it is)", file=sys.stderr, flush=True)
        return False
    return True


def build(path: Path, packages: list[str]) -> None:
    """Build an environment, unless it is there."""
    done = path / "complete"
    if done.exists():
        return
    print(f"building {path}", file=sys.stderr, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", path], check=True)
    subprocess.run([path / "bin" / "pip", "install", "--quiet", TORCH, *packages], check=True)
    done.touch()


def command(side: str, options: argparse.Namespace, folder: Path) -> list[Any]:
    """Return the command of one side."""
    arguments = [folder, options.batches]
    if side in OURS:
        words = [sys.executable, HERE / "ppo_ours.py", *arguments, *OURS[side]]
    else:
        program = "ppo_trl_0_11.py" if side == "trl-0.11.4" else "ppo_trl_1_12.py"
        words = [options.environments / side / "bin" / "python", HERE / program, *arguments]
    return [*words, *_tiny(options)]


def _tiny(options: argparse.Namespace) -> list[str]:
    return ["--tiny"] if options.tiny else []


def call(arguments: list[Any]) -> dict[str, Any]:
    """Run a process, and return its last line read as JSON, if it is that.

    Raises:
        SystemExit: it failed; its last words are shown.
    """
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "PYTHONPATH": str(HERE)}
    if HERE / "ppo_ours.py" in arguments:
        environment |= CPU_MEMORY
    done = subprocess.run([str(part) for part in arguments], capture_output=True, text=True, env=environment)
    lines = done.stdout.strip().splitlines()
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))} failed:\n{done.stderr[-3000:]}")
    return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}


def summary(runs: dict[str, list[dict[str, Any]]], speeds: list[dict[str, Any]], work: Work) -> dict[str, Any]:
    """Return medians of each side, and ours in relation to each of TRL's."""
    speed = {name: [max(row[name][at] for row in speeds) for at in (0, 1)] for name in speeds[0]}
    sides = {}
    for name, measured in runs.items():
        seconds = statistics.median(value for run in measured for value in run["seconds"])
        processor = statistics.median(value for run in measured for value in run["processor"])
        dtype = "bfloat16" if "bf16" in name else "float32"
        sides[name] = {
            "seconds": seconds,
            "samples_per_second": work.batch / seconds,
            "processor_seconds": processor,
            "samples_per_processor_second": work.batch / processor,
            "peak_mb": statistics.median(run["peak"] for run in measured) / 1e6,
            "above_libraries_mb": statistics.median(run["peak"] - run["baseline"] for run in measured) / 1e6,
            "fraction_of_limit": ppo_work.flop(work) / speed[dtype][0] / seconds,
            "fraction_of_limit_processor": ppo_work.flop(work) / speed[dtype][1] / processor,
            "load": statistics.median(run["load"] for run in measured),
            "versions": measured[0]["versions"],
        }
    return {"flop": ppo_work.flop(work), "matmul_flop_per_second": speed, "sides": sides, "ratios": _ratios(sides)}


def _ratios(sides: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for (ours, theirs), (faster, smaller) in WANTED.items():
        if ours not in sides or theirs not in sides:
            continue
        mine, other = sides[ours], sides[theirs]
        row = {
            "ours": ours,
            "theirs": theirs,
            "wanted_speed": faster,
            "wanted_memory": smaller,
            "speed": other["seconds"] / mine["seconds"],
            "speed_processor": other["processor_seconds"] / mine["processor_seconds"],
            "memory": mine["peak_mb"] / other["peak_mb"],
        }
        fast_enough = faster is None or row["speed"] >= faster
        row["met"] = fast_enough and (smaller is None or row["memory"] <= smaller)
        rows.append(row)
    return rows


def table(document: dict[str, Any]) -> str:
    """Return the tables for a person, and for docs/performance.md."""
    speed = document["matmul_flop_per_second"]
    lines = [
        f"{document['flop'] / 1e12:.2f} TFLOP per batch; matrix products here: "
        + ", ".join(f"{name} {rate[0] / 1e9:.0f} GFLOP/s" for name, rate in speed.items()),
        "",
        "| | s per batch | samples/s | processor s | peak | above the libraries | of the limit (processor) | load |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, side in document["sides"].items():
        lines.append(
            f"| {name} | {side['seconds']:.1f} | {side['samples_per_second']:.2f} | {side['processor_seconds']:.1f} | "
            f"{side['peak_mb']:.0f} MB | {side['above_libraries_mb']:.0f} MB | {side['fraction_of_limit']:.0%} "
            f"({side['fraction_of_limit_processor']:.0%}) | {side['load']:.1f} |"
        )
    lines += [
        "",
        "| | × samples/s | wanted | × by processor time | × peak memory | wanted | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in document["ratios"]:
        memory = f"≤ {row['wanted_memory']}" if row["wanted_memory"] else ""
        faster = f"≥ {row['wanted_speed']}" if row["wanted_speed"] else ""
        lines.append(
            f"| {row['ours']} : {row['theirs']} | {row['speed']:.2f} | {faster} | "
            f"{row['speed_processor']:.2f} | {row['memory']:.2f} | {memory} | {'met' if row['met'] else '**missed**'} |"
        )
    return "\n".join(lines)


def _brief(run: dict[str, Any]) -> str:
    seconds, processor = (", ".join(f"{value:.1f}" for value in run[key]) for key in ("seconds", "processor"))
    return f"{seconds} s, {processor} s of processor, {run['peak'] / 1e6:.0f} MB"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="PPO here against TRL 0.11.4 and 1.12.0.")
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "stackllama-benchmarks"
    parser.add_argument("--rounds", type=int, default=3, help="each side once in each")
    parser.add_argument("--batches", type=int, default=2, help="batches that count in each run")
    parser.add_argument("--environments", type=Path, default=cache, help="where TRL's environments are built")
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--tiny", action="store_true", help="one round of a tiny model: whether it runs, not how fast")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.rounds = options.batches = 1
    return options


if __name__ == "__main__":
    sys.exit(main())
