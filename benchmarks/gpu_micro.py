"""What each faster path is worth alone on this GPU: PPO's phases at 0.9B in bf16, and one matrix of a 7B per precision.

    python benchmarks/gpu_micro.py            # 4 minutes at most; run again to resume
    python benchmarks/gpu_micro.py --tiny     # a tiny model on the CPU; no results are kept

Per variant (``gpu_work.VARIANTS``): milliseconds per decoded token for 128 and for 4 rows (long responses less short
ones, so that prompts do not count), of scoring 16 rows and of one update of one micro-batch of 16 with its optimizer
step; launches and the card's own milliseconds under torch's profiler, once more and apart from the times;
peak memory of the update; whether the first ratio is exactly 1. Per precision: a layer of 4096 × 11008 over 4,096 rows
as in training, forward and backward, and over 128 rows as in decoding, with its relative error against bfloat16;
three inputs in a hundred times 30, because a trained model has such outliers, and LLM.int8 treats them apart.
Results are ``docs/measurements/gpu-micro.jsonl``, a line per cell as it comes, and a table, ``gpu-micro.md``.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_work
import ppo_work
from gpu_results import Results, Row, header, identity, number, write_table

_NAME = "gpu-micro"
_LINEARS = ("bf16", "LLM.int8, threshold 6", "LLM.int8, threshold 0", "nf4", "torchao int8", "torchao int4")
_PHASES = {"decode": "decode, 128 rows", "decode_few": "decode, 4 rows", "score": "score", "update": "update"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 when a cell failed."""
    options = gpu_work.parser("What each faster path is worth on a GPU.", ["0.9b"]).parse_args(arguments)
    if options.worker:
        measure_all(options)
        return 0
    return gpu_work.start(options, Path(__file__), [], write)


def measure_all(options: argparse.Namespace) -> None:
    """Measure all cells until the time is over."""
    deadline = gpu_work.Deadline(options.seconds)
    model, device = options.worker, "cpu" if options.tiny else "cuda"
    ppo_work.quiet(on_gpu=not options.tiny)
    import ppo_stage  # and with it torch

    ppo_stage.models.quiet_libraries()
    results = Results(options.out / f"{_NAME}.jsonl", identity(gpu_work.device_name(options)))
    variants = [variant for variant in gpu_work.VARIANTS if gpu_work.is_available(variant)]
    cells: dict[str, Callable[[], dict[str, Any]]] = {}
    for variant in ["all"] if options.tiny else variants:
        cells[f"phases, {variant}"] = lambda variant=variant: phases(variant, options.work / model, model, device)
    for kind in _LINEARS[:1] if options.tiny else _LINEARS:
        cells[f"layer, {kind}"] = lambda kind=kind: layer(kind, device)
    wanted = [name for name in cells if results.find(name) is None]
    if wanted:
        gpu_work.prepare(options.work / model, model, ppo_work.GPU[model], 1, reward_model=False)
    longest = 0.0
    for at, name in enumerate(wanted):
        if not deadline.allows(longest):
            print(f"{len(wanted) - at} cells are left; run it again", flush=True)
            return
        began = time.monotonic()
        print(f"{name} …", flush=True)
        try:
            values = cells[name]()
        except Exception as error:  # noqa: BLE001 - a cell that fails is a result, and others follow
            values = {"failure": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        results.add(name, values)
        longest = max(longest, time.monotonic() - began)


def phases(variant: str, folder: Path, model: str, device: str) -> dict[str, Any]:
    """Time PPO's phases alone in one variant of the engine."""
    import gpu_machine
    import ppo_stage
    import torch

    gpu_machine.release(device)
    work = ppo_work.GPU[model]
    keys = [*gpu_work.leave_out(variant), *gpu_work.PRECISIONS["float32" if device == "cpu" else "bf16"]]
    keys += [f"use_cpu={str(device == 'cpu').lower()}", f"local_rollout_forward_batch_size={work.batch}"]
    micro = work.micro or work.mini
    one = replace(work, batch=micro, mini=micro, epochs=1)
    with ppo_stage.opened(ppo_stage.recipe_of(folder, 1, one, keys), one) as stage:
        algorithm, stops = stage.algorithm, stage.encoder.stop_ids

        def sample(rows: int, tokens: int) -> Any:
            noise = [ppo_stage.draw_noise(0, 0, row, (tokens, tokens + 1)) for row in range(rows)]
            return algorithm.sample([stage.prompts.at(row) for row in range(rows)], noise, stops)

        long, short = min(work.response, 33), 1

        def per_token(rows: int) -> float:
            """Milliseconds of a token, the prompt's pass left out."""
            took = [gpu_machine.fastest(lambda n=n: sample(rows, n), device, 2) for n in (long, short)]
            return 1e3 * (took[0] - took[1]) / (long - short)

        values: dict[str, Any] = {"decode_ms": per_token(work.batch), "decode_few_ms": per_token(min(4, work.batch))}
        prompts = [stage.prompts.at(row) for row in range(micro)]
        responses = sample(micro, work.response)
        rollout = algorithm.score(prompts, responses)

        def update() -> Any:
            return algorithm.learn(rollout, torch.Generator().manual_seed(0))

        # the first update of a rollout that was just scored: later ones follow from other weights
        values["ratio_first"] = update().stats.metrics()["val/ratio_first"]
        values["score_ms"] = 1e3 * gpu_machine.fastest(lambda: algorithm.score(prompts, responses), device)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        values["update_ms"] = 1e3 * gpu_machine.fastest(update, device)
        values["update_peak"] = torch.cuda.max_memory_allocated() if device == "cuda" else None
        few = [gpu_machine.profiled(lambda n=n: sample(work.batch, n), device) for n in (9, 1)]
        values["decode"] = {name: (few[0][name] - few[1][name]) / 8 for name in few[0]}
        values["score"] = gpu_machine.profiled(lambda: algorithm.score(prompts, responses), device)
        values["update"] = gpu_machine.profiled(update, device)
    return values


def layer(kind: str, device: str) -> dict[str, Any]:
    """Time one matrix of a 7B's MLP in one precision."""
    import gpu_machine
    import torch

    gpu_machine.release(device)
    inputs, outputs, rows, few = (4096, 11008, 4096, 128) if device == "cuda" else (64, 96, 32, 4)
    torch.manual_seed(0)
    plain = torch.nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16)
    x = torch.randn(rows, inputs, dtype=torch.bfloat16)
    x[:, ::33] *= 30  # outliers in three columns of a hundred
    x, wanted = x.to(device), plain.to(device)(x.to(device)).detach()
    module = _quantised(kind, plain.cpu(), device)
    leaf = x.clone().requires_grad_()

    def both_ways() -> None:
        leaf.grad = None
        module(leaf).sum().backward()

    with torch.no_grad():
        values: dict[str, Any] = {
            "forward_ms": 1e3 * gpu_machine.fastest(lambda: module(x), device, 10),
            "few_rows_ms": 1e3 * gpu_machine.fastest(lambda: module(x[:few]), device, 10),
            "relative_error": float((module(x) - wanted).norm() / wanted.norm()),
        }
    values["both_ways_ms"] = 1e3 * gpu_machine.fastest(both_ways, device, 10)
    return values


def _quantised(kind: str, plain: Any, device: str) -> Any:
    """Return the layer in a precision, frozen, on the device.

    Raises:
        ImportError: its package is not installed.
    """
    import torch
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    match kind:
        case "bf16":
            module = plain
        case "LLM.int8, threshold 6" | "LLM.int8, threshold 0":
            module = Linear8bitLt(
                plain.in_features, plain.out_features, False, has_fp16_weights=False, threshold=float(kind[-1])
            )
            module.load_state_dict(plain.state_dict())
        case "nf4":
            module = Linear4bit(
                plain.in_features, plain.out_features, False, compute_dtype=torch.bfloat16, quant_type="nf4"
            )
            module.load_state_dict(plain.state_dict())
        case _:
            from torchao import quantization  # pyright: ignore[reportMissingImports]

            names = {"torchao int8": "Int8WeightOnlyConfig", "torchao int4": "Int4WeightOnlyConfig"}
            module = torch.nn.Sequential(plain.to(device))
            quantization.quantize_(module, getattr(quantization, names[kind])())
    return module.to(device).requires_grad_(False)


def write(options: argparse.Namespace) -> bool:
    """Write the tables; return whether a cell failed, other than for a package that is not installed."""
    results = Results(options.out / f"{_NAME}.jsonl", identity(gpu_work.device_name(options)))
    rows = list(results.newest().values())
    measured = [row for row in rows if "failure" not in row]
    lines = header("Faster paths, each alone", "benchmarks/gpu_micro.py", results)
    lines += [
        "Milliseconds by the clock; launches, and the card's own milliseconds, of one token, score and update.",
        "",
        f"| | {' | '.join(_PHASES.values())} | launches | card's ms | update's peak GiB | ratio |",
        "|---" * 9 + "|",
        *(_phases_line(row) for row in measured if row["cell"].startswith("phases")),
        "",
        "| | forward ms | 128 rows ms | forward and backward ms | relative error |",
        "|---" * 5 + "|",
        *(_layer_line(row) for row in measured if row["cell"].startswith("layer")),
        "",
        *(f"{row['cell']} failed: {row['failure']}" for row in rows if "failure" in row),
    ]
    write_table(options.out / f"{_NAME}.md", lines)
    missing = ("ImportError", "ModuleNotFoundError")
    return not measured or any("failure" in row and not row["failure"].startswith(missing) for row in rows)


def _phases_line(row: Row) -> str:
    profiles = [row[phase] for phase in ("decode", "score", "update")]
    columns = [
        row["cell"].removeprefix("phases, "),
        *(number(row[f"{phase}_ms"]) for phase in _PHASES),
        " / ".join(number(each.get("launches"), ".0f") for each in profiles),
        " / ".join(number(each.get("gpu_ms")) for each in profiles),
        number(row["update_peak"] / (1 << 30) if row["update_peak"] else None),
        f"{row['ratio_first']:g}",
    ]
    return f"| {' | '.join(columns)} |"


def _layer_line(row: Row) -> str:
    columns = [number(row[name], ".3f") for name in ("forward_ms", "few_rows_ms", "both_ways_ms")]
    return f"| {row['cell'].removeprefix('layer, ')} | {' | '.join(columns)} | {row['relative_error']:.1e} |"


if __name__ == "__main__":
    sys.exit(main())
