"""From launch to the first step, of this checkout and of another one, in turns.

    python benchmarks/start.py --against ../before       # the demo's base, SFT and PPO, five rounds; the ratio
    python benchmarks/start.py --against ../before --base ~/models/llama-7b --gpu
    python benchmarks/start.py --tiny                    # this checkout alone, one start of SFT

``--against`` is a checkout of an earlier version (``git worktree add ../before COMMIT``), run by the same Python. Each
start is a run of one step, launched as a person launches it; the time ends with the first step's metrics. PPO scores by
the length of a response, so that no reward model has to be trained.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_STAGES = {
    "sft": ("max_train_samples=64", "max_eval_samples=4", "max_length=256", "eval_steps=0"),
    "ppo": (
        "reward_funcs=stackllama_engine.rewards:target_length",
        "reward_kwargs.words=20",
        "max_train_samples=16",
        "max_eval_samples=2",
        "response_length=16",
        "per_device_train_batch_size=4",
        "gradient_accumulation_steps=1",
        "num_mini_batches=1",
        "local_rollout_forward_batch_size=4",
    ),
}
_COMMON = ("dataset_name=demo", "load_in_8bit=false", "lora_target_modules=all-linear", "max_steps=1", "save_steps=0")
_PATIENCE = 1200


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print."""
    options = _options(arguments)
    checkouts = {"this": ROOT} | ({"other": options.against.resolve()} if options.against else {})
    for stage in options.stages:
        seconds: dict[str, list[float]] = {name: [] for name in checkouts}
        for number in range(options.rounds):
            for name, checkout in checkouts.items():
                seconds[name].append(_start(checkout, stage, options))
                print(f"{stage}, round {number + 1}, {name}: {seconds[name][-1]:.2f} s", flush=True)
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        line = ", ".join(f"{name} {median:.2f} s" for name, median in medians.items())
        ratio = f"; {medians['this'] / medians['other']:.2f} of the other" if "other" in medians else ""
        print(f"{stage}: {line}{ratio}", flush=True)
    return 0


def _start(checkout: Path, stage: str, options: argparse.Namespace) -> float:
    """Return the seconds from launch to the metrics of the first step.

    Raises:
        RuntimeError: the run did not finish.
    """
    keys = [f"model_name_or_path={options.base}", *_COMMON, *_STAGES[stage]]
    keys += [f"use_cpu={str(not options.gpu).lower()}", *(["bf16=true"] if options.gpu else ["dtype=float32"])]
    with tempfile.TemporaryDirectory(prefix="start-") as home:
        done = subprocess.run(
            [sys.executable, "-m", "stackllama_console", "launch", stage, *keys, "--home", home, "--follow", "--plain"],
            env=os.environ | {"PYTHONPATH": f"{checkout / 'engine'}:{checkout / 'console'}"},
            cwd=home,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{checkout}: {stage} failed.\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        [run] = (Path(home) / "runs").iterdir()
        launched = json.loads((run / "launch.json").read_bytes())["created"]
        lines = (run / "attempts" / "001" / "events.jsonl").read_bytes().splitlines()
        events = [json.loads(line) for line in lines]
        return next(e["time"] - launched for e in events if e["kind"] == "metrics" and e.get("step") == 1)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Seconds from launch to the first step.")
    parser.add_argument("--against", type=Path, help="checkout of another version")
    parser.add_argument("--base", default="demo", help="model")
    parser.add_argument("--stages", nargs="+", choices=[*_STAGES], default=[*_STAGES])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gpu", action="store_true", help="on the GPU, in bf16")
    parser.add_argument("--tiny", action="store_true", help="one start of SFT: whether it runs")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.stages, options.rounds, options.against = ["sft"], 1, None
    return options


if __name__ == "__main__":
    sys.exit(main())
