"""PPO on this machine's GPU: samples per second, the share of sampling in it, and peak memory.

    python benchmarks/gpu_ppo.py                     # a random LLaMA of 0.9 billion parameters, bf16 and int8
    python benchmarks/gpu_ppo.py --precisions nf4 --steps 20
    python benchmarks/gpu_ppo.py --tiny              # a tiny model on the CPU; no table is kept

The real stages are launched: a reward adapter on the base first, then PPO against it, 16 responses of up to 128 tokens
to prompts of up to 512. The first step is not counted. The table goes to ``docs/measurements/gpu-ppo.md``. Without a
GPU it says so and ends with 0.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_memory import ROOT, TINY, Grid, Size  # which finds the engine

from stackllama_engine.contract.events import EventReader
from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.gpus import first_card

_FULL = Size(length=1024, prompt=512, response=128, batch=4, rollouts=16)
_PHASES = ("rollout", "score", "update")


class Longer(Size):
    """A size with a number of PPO steps."""

    def __init__(self, steps: int, size: Size) -> None:
        super().__init__(
            length=size.length, prompt=size.prompt, response=size.response, batch=size.batch, rollouts=size.rollouts
        )
        self.steps = steps

    def overrides(self, stage: Stage) -> list[str]:
        """Return the stage's recipe keys."""
        return [*super().overrides(stage), *([f"max_steps={self.steps}"] if stage is Stage.PPO else [])]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 when a run failed."""
    options = _options(arguments)
    card = first_card()
    if card is None and not options.tiny:
        print("No GPU here: nothing was measured. `--tiny` tries it on the CPU.")
        return 0
    size = TINY if options.tiny else _FULL
    with tempfile.TemporaryDirectory(prefix="ppo-") as folder:
        grid = Grid(Path(folder), Longer(options.steps + 1, size), on_cpu=options.tiny)
        rows = [_measure(grid, precision) for precision in options.precisions]
    text = _table(card.name if card and not options.tiny else "CPU", size.rollouts, options.steps, rows)
    if not options.tiny:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "gpu-ppo.md").write_text(text, encoding="utf-8")
    print(text)
    return 1 if any("failed" in row for row in rows) else 0


def _table(device: str, rollouts: int, steps: int, rows: list[str]) -> str:
    lines = [
        f"# PPO on one {device}",
        "",
        "Random LLaMA of 0.9 billion parameters, LoRA on all linear layers, four epochs; "
        f"{rollouts} responses per step, medians of {steps} steps after the first. "
        "Written by `benchmarks/gpu_ppo.py`.",
        "",
        "| base | samples/s | response tokens/s | sampling | scoring | update | peak allocated |",
        "|---" * 7 + "|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def _measure(grid: Grid, precision: str) -> str:
    """Measure one precision, and return its line of the table."""
    reward_model = grid.run(Stage.REWARD, precision, "")
    is_done = reward_model.read_state().phase == "finished"
    run = grid.run(Stage.PPO, precision, reward_model.id) if is_done else reward_model
    state = run.read_state()
    if state.phase != "finished":
        return f"| {precision} | failed: {' '.join((state.cause or state.phase).split())[:200]} | | | | | |"
    steps, peak = _read(run)
    times = {phase: statistics.median(step[f"time/{phase}"] for step in steps[1:]) for phase in _PHASES}
    whole = sum(times.values())
    tokens = statistics.median(step["response_tokens_per_second"] for step in steps[1:])
    shares = " | ".join(f"{seconds / whole:.0%}" for seconds in times.values())
    return f"| {precision} | {grid.size.rollouts / whole:.2f} | {tokens:.0f} | {shares} | {peak / 2**30:.2f} GiB |"


def _read(run: RunDir) -> tuple[list[dict[str, Any]], float]:
    """Return the metrics of each training step, and the most that was allocated."""
    events = list(EventReader(run.attempt_dir(1) / "events.jsonl").read())
    steps = [event.metrics for event in events if event.kind == "metrics" and "time/rollout" in event.metrics]
    peaks = [event.metrics.get("allocated") or 0.0 for event in events if event.kind == "memory"]
    return steps, max(peaks, default=0.0)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed and memory of PPO on a GPU.")
    parser.add_argument("--precisions", nargs="+", default=["bf16", "int8"], choices=["float32", "bf16", "int8", "nf4"])
    parser.add_argument("--steps", type=int, default=8, help="PPO steps that count")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements", help="where the table goes")
    parser.add_argument("--tiny", action="store_true", help="two steps of a tiny model on the CPU: whether it runs")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.precisions, options.steps = ["float32"], 1
    return options


if __name__ == "__main__":
    sys.exit(main())
