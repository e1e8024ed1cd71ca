"""PPO on this machine's GPU: seconds per phase, samples per second, share of the floor, and peak memory.

    python benchmarks/gpu_ppo.py                            # random LLaMAs of 0.9B and 7B; 4 minutes each at most
    python benchmarks/gpu_ppo.py --models 7b --work /data   # resumes; keeps the models for the next time
    python benchmarks/gpu_ppo.py --models 0.9b --precisions nf4 --seconds 60
    python benchmarks/gpu_ppo.py --tiny                     # a tiny model on the CPU; no results are kept

The stage itself runs, step by step, in one process per model: 128 responses of 127 tokens, none of which ends, to
prompts of 511, LoRA r 16 on all matrices, four epochs, a reward model on the shared base. Each precision is measured
with the critic's own adapter and, in bf16, without; then bf16 without each of the faster paths (``left_out.py``),
without all of them, and with Liger's kernels where they are installed. One step warms up where there is time for two.

Results are ``docs/measurements/gpu-ppo.jsonl``, a line per cell as it comes, and a table, ``gpu-ppo.md``. A run resumes
with the first cell that has no result of this card, these versions and these sources. Shares are of the floor in
``floor.py`` at the rates that a product and a copy attain on the same card (measured first).
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import floor
import gpu_work
import ppo_work
from gpu_results import Results, Row, header, identity, number, write_table
from ppo_work import Work

_NAME = "gpu-ppo"
_PHASES = ("rollout", "score", "update")
_FEWER = {("7b", "int8"): 32}
"""Responses where 128 would take longer than a model's time."""
_GIB = 1 << 30


@dataclass(frozen=True)
class Cell:
    """One thing to measure."""

    model: str
    precision: str
    own_critic: bool = True
    variant: str = "all"
    upper_half: bool = False
    """Whether the critic's adapter is in the upper half of the layers alone."""

    @property
    def name(self) -> str:
        """The cell's name in results."""
        critic = "own critic" if self.own_critic else "critic on the policy's states"
        critic += " in the upper half" if self.upper_half else ""
        return f"{self.model}, {self.precision}, {critic}, {self.variant}"

    @property
    def work(self) -> Work:
        """Its sizes."""
        work = ppo_work.GPU[self.model]
        fewer = _FEWER.get((self.model, self.precision), work.batch)
        return replace(work, batch=fewer, mini=min(work.mini, fewer))


def cells(model: str, precisions: Sequence[str]) -> list[Cell]:
    """Return a model's cells, those first that say most."""
    plain = precisions[0]
    if model == "tiny":
        return [Cell(model, plain), Cell(model, plain, own_critic=False, variant="none")]
    return [
        Cell(model, plain),
        Cell(model, plain, own_critic=False),
        *(Cell(model, precision) for precision in precisions[1:]),
        Cell(model, plain, upper_half=True),
        *(Cell(model, plain, variant=variant) for variant in gpu_work.VARIANTS[1:] if gpu_work.is_available(variant)),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 when a cell failed."""
    options = _options(arguments)
    if options.worker:
        measure_model(options)
        return 0
    more = ["--precisions", *options.precisions, "--steps", options.steps]
    return gpu_work.start(options, Path(__file__), more, write)


def measure_model(options: argparse.Namespace) -> None:
    """Measure a model's cells until its time is over."""
    deadline = gpu_work.Deadline(options.seconds)
    model, device = options.worker, "cpu" if options.tiny else "cuda"
    ppo_work.quiet(on_gpu=not options.tiny)
    import gpu_machine  # and with it torch
    import ppo_stage

    ppo_stage.models.quiet_libraries()
    results = Results(options.out / f"{_NAME}.jsonl", identity(gpu_work.device_name(options)))
    wanted = [cell for cell in cells(model, options.precisions) if results.find(cell.name) is None]
    if not wanted:
        print(f"{model}: everything is measured", flush=True)
        return
    folder = options.work / model
    rates = gpu_machine.measure_rates(device)
    seconds = gpu_work.prepare(folder, model, ppo_work.GPU[model], options.steps + 1, reward_model=False)
    print(
        f"{model}: {rates.flop / 1e12:.0f} TFLOP/s, {rates.bytes / 1e12:.2f} TB/s; made in {seconds:.0f} s", flush=True
    )
    longest = 0.0
    for number_, cell in enumerate(wanted):
        if not deadline.allows(longest):
            print(f"{model}: {len(wanted) - number_} cells are left; run it again", flush=True)
            return
        began = time.monotonic()
        print(f"{cell.name} …", flush=True)
        try:
            values = measure(cell, folder, options.steps, deadline, rates, device)
        except Exception as error:  # noqa: BLE001 - a cell that fails, out of memory say, is a result, and others follow
            values = {"failure": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        results.add(cell.name, {"model": model, **values})
        longest = max(longest, time.monotonic() - began)


def measure(
    cell: Cell, folder: Path, steps: int, deadline: gpu_work.Deadline, rates: floor.Rates, device: str
) -> dict[str, Any]:
    """Make PPO steps of a cell, and return what they took."""
    import gpu_machine
    import ppo_stage

    before = gpu_machine.release(device)
    keys = [*gpu_work.leave_out(cell.variant), *gpu_work.PRECISIONS[cell.precision]]
    keys += [f"value_adapter={str(cell.own_critic).lower()}", f"use_cpu={str(device == 'cpu').lower()}"]
    keys += ["value_adapter_layers=0.5"] if cell.upper_half else []
    recipe = ppo_stage.recipe_of(folder, steps, cell.work, keys)
    metrics: list[dict[str, float]] = []
    with ppo_stage.opened(recipe, cell.work) as stage:
        busy = gpu_machine.BusyMeter(device, lambda: stage.reporter.current_phase)
        busy.start()
        try:
            for step in range(steps + 1):
                began = time.monotonic()
                metrics.append(stage.step(step)[0])
                took = time.monotonic() - began
                print(f"  step {step + 1}: {took:.1f} s", flush=True)
                if not deadline.allows(took):
                    break
        finally:
            shares = busy.stop()
        stage.reporter.phase("end")  # which reports the last phase's memory
        history = ppo_stage.history(stage)
    _check(metrics, cell.work)
    return {
        "responses": cell.work.batch,
        "steps": max(1, len(metrics) - 1),
        "warmed_up": len(metrics) > 1,
        **_speed(cell, metrics[1:] or metrics, rates),
        "busy": shares,
        "peaks": {phase: history.memory_by_phase[phase] for phase in _PHASES},
        "shortages": [text for text in history.health if "out of" in text.lower()],
        "allocated_before": before,
        "ratio_first": metrics[-1]["val/ratio_first"],
        "approxkl_first": metrics[-1]["policy/approxkl_first"],
    }


def _check(metrics: list[dict[str, float]], work: Work) -> None:
    """Insist that every response had the length that the floor counts."""
    lengths = {row["val/num_tokens"] for row in metrics}
    assert lengths == {work.batch * work.response}, lengths


def _speed(cell: Cell, metrics: list[dict[str, float]], rates: floor.Rates) -> dict[str, Any]:
    """Return medians of phases, and their shares of the floor."""
    work = cell.work
    seconds = {phase: median(row[f"time/{phase}"] for row in metrics) for phase in _PHASES}
    whole = sum(seconds.values())
    shape = gpu_work.shape_of(work)
    half = -(-shape.layers // 2) if cell.upper_half else None
    step = floor.PPOStep(work.batch, work.prompt, work.response, work.epochs, cell.own_critic, half)
    least = floor.ppo_phases(shape, step, rates, cell.precision)
    return {
        "seconds": seconds,
        "samples_per_second": work.batch / whole,
        "response_tokens_per_second": work.batch * work.response / whole,
        "tokens_per_second": work.batch * (work.prompt + work.response) / whole,
        "share_of_floor": sum(least.values()) / whole,
        "shares_of_floor": {phase: least[phase] / seconds[phase] for phase in _PHASES},
        "rates": {"flop": rates.flop, "bytes": rates.bytes},
    }


def write(options: argparse.Namespace) -> bool:
    """Write the table; return whether a cell failed."""
    results = Results(options.out / f"{_NAME}.jsonl", identity(gpu_work.device_name(options)))
    rows = list(results.newest().values())
    lines = header("PPO", "benchmarks/gpu_ppo.py", results)
    lines += [
        "Medians per phase in seconds, with their share of the floor; how busy the card was and peak memory in "
        "sampling / scoring / update. * no step to warm up. † memory ran short, and batches were made smaller.",
        "",
        "| | responses | samples/s | of the floor | tokens/s | sampling | scoring | update | busy | peak GiB | ratio |",
        "|---" * 11 + "|",
        *(_line(row) for row in rows),
    ]
    write_table(options.out / f"{_NAME}.md", lines)
    return not rows or any("failure" in row for row in rows)


def _line(row: Row) -> str:
    if "failure" in row:
        return f"| {row['cell']} | failed: {row['failure'].replace('|', '/')} |" + " |" * 9
    phases = [f"{row['seconds'][phase]:.2f} ({row['shares_of_floor'][phase]:.0%})" for phase in _PHASES]
    busy = [number(row["busy"].get(phase), ".0%") for phase in _PHASES]
    peaks = [number(row["peaks"][phase].get("allocated", 0) / _GIB or None) for phase in _PHASES]
    columns = [
        f"{row['cell']}{'' if row['warmed_up'] else ' *'}{' †' if row['shortages'] else ''}",
        str(row["responses"]),
        f"{row['samples_per_second']:.2f}",
        f"{row['share_of_floor']:.0%}",
        f"{row['tokens_per_second']:.0f}",
        *phases,
        " / ".join(busy),
        " / ".join(peaks),
        f"{row['ratio_first']:g}",
    ]
    return f"| {' | '.join(columns)} |"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = gpu_work.parser("Speed and memory of PPO on a GPU.", ["0.9b", "7b"])
    parser.add_argument("--precisions", nargs="+", default=["bf16", "nf4", "int8"], choices=list(gpu_work.PRECISIONS))
    parser.add_argument("--steps", type=int, default=2, help="PPO steps that count, after one to warm up")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.precisions, options.steps = ["float32"], 1
    return options


if __name__ == "__main__":
    sys.exit(main())
