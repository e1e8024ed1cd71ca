"""Predicted against measured memory, row by row, beside what other tools' formulas give for the same row.

    python benchmarks/memory_accuracy.py TABLE.csv        # or MEMORY_TABLE=TABLE.csv
    python benchmarks/memory_accuracy.py TABLE.csv --json
    python benchmarks/memory_accuracy.py --tiny           # one row that is written here

The table has the columns ``id, stack, model, method, weights_dtype, quant, lora_r, lora_targets, batch, seq_len,
grad_ckpt, optimizer, gpus, parallel, measured, unit, metric, grade, notes``. Rows whose columns do not say enough are
counted and left out. An error is (predicted − measured) / measured: negative is optimistic.
"""

import argparse
import csv
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / name) for name in ("engine", "benchmarks")]

from stacks import Case, Metric, case_of  # noqa: E402

from stackllama_engine.budget import device  # noqa: E402

_UNITS = {"GB": 10**9, "G": 1 << 30, "GiB": 1 << 30, "MiB": 1 << 20, "GB (approx)": 10**9, "GB card": 1 << 30}


TINY = {
    "id": "1",
    "stack": "hand-written loop",
    "model": "meta-llama/Llama-3.2-3B",
    "method": "lora",
    "quant": "",
    "lora_r": "32",
    "lora_targets": "q_proj+v_proj",
    "batch": "4",
    "seq_len": "<=768 (max 729)",
    "gpus": "1",
    "parallel": "none",
    "measured": "22.3",
    "unit": "GB",
    "metric": "reserved",
    "grade": "A",
    "notes": "trainable=9175040;",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and its summary."""
    parser = argparse.ArgumentParser(description="Predicted against measured memory.")
    parser.add_argument("table", nargs="?", default=os.environ.get("MEMORY_TABLE"), help="CSV of measured peaks")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--tiny", action="store_true", help="one row instead of a table: whether it runs")
    options = parser.parse_args(arguments)
    if options.tiny:
        rows = [TINY]
    elif options.table:
        with Path(options.table).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    else:
        parser.error("name the table, or set MEMORY_TABLE")
    results = [prediction for row in rows if (prediction := result(row))]
    points = [one for one in results if one["metric"] != "capacity"]
    capacity = [one for one in results if one["metric"] == "capacity"]
    summary = {
        "rows": len(rows),
        "predicted": len(results),
        "grade A": statistics_of([one["error"] for one in points if one["grade"] == "A"]),
        "grade B": statistics_of([one["error"] for one in points if one["grade"] == "B"]),
        "capacity rows": {
            "rows": len(capacity),
            "the longest context that ran is predicted to fit": sum(one["error"] <= 0 for one in capacity),
            "a tenth more is predicted not to": sum(one["longer"] > one["measured"] for one in capacity),
        },
    }
    for tool in ("accelerate", "deepspeed", "llama-factory"):
        errors = [one[tool] / one["measured"] - 1 for one in points if one["grade"] == "A" and one[tool]]
        summary[f"grade A by {tool}"] = statistics_of(errors)
    if options.json:
        print(json.dumps({"summary": summary, "rows": results}, indent=2))
        return 0
    show(results)
    for name, value in summary.items():
        print(f"{name}: {value}")
    return 0


def result(row: dict[str, str]) -> dict[str, Any] | None:
    """Return one row's prediction in bytes, or None where its columns do not say enough."""
    case = case_of(row)
    try:
        measured = float(row["measured"]) * _UNITS[row["unit"]] if row["metric"][:8] != "capacity" else card(row)
    except (ValueError, KeyError):
        return None
    if case is None:
        return None
    predicted = of_metric(case.metric, case.allocated)
    return {
        "id": int(row["id"]),
        "what": f"{row['model'][-14:]} {row['method']} {row['lora_r']} {row['notes'][-34:]}",
        "grade": row["grade"],
        "metric": case.metric,
        "phase": max(case.phases, key=lambda one: one.bytes).name,
        "measured": measured,
        "predicted": predicted,
        "error": predicted / measured - 1,
        "longer": of_metric(case.metric, case.longer),
        **others(row, case),
    }


def of_metric(metric: Metric, allocated: int) -> int:
    """Return the bytes that the row measured: allocated, most likely reserved, or reserved and the CUDA context."""
    if metric == "allocated":
        return allocated
    reserved = device.likely_reserved(allocated)
    return reserved if metric == "reserved" else reserved + device.CONTEXT[0]


def card(row: dict[str, str]) -> float:
    """Return the bytes of the card that a capacity row names in ``measured``: `max context fitting N`."""
    return float(row["measured"].rsplit(maxsplit=1)[-1]) * _UNITS[row["unit"]]


def others(row: dict[str, str], case: Case) -> dict[str, int]:
    """Return the same row by the formulas of other tools; 0 where a tool says nothing about it.

    - ``accelerate estimate-memory``: Adam on every weight, 8 bytes per parameter in bf16 (4 times the float32 half).
    - DeepSpeed ``estimate_zero3_model_states_mem_needs``: 18 bytes per parameter and GPU, and the largest layer in
      float32, no activations.
    - LLaMA-Factory's table of requirements: 8 GB per billion for pure bf16, 2 for LoRA on 16 bits, 0.5 on 4 bits.
    """
    parameters = case.arch.parameters
    full = row["method"].startswith("full")
    per_billion = 8 if full else 0.5 if row["quant"].startswith("nf4") or row["method"] == "qlora" else 2
    return {
        "accelerate": 8 * parameters,
        "deepspeed": (18 * parameters + 4 * case.arch.embedding) if full else 0,
        "llama-factory": round(per_billion * parameters),
    }


def statistics_of(errors: list[float]) -> dict[str, Any]:
    """Return median and 90th percentile of the absolute errors, and both extremes."""
    if not errors:
        return {"rows": 0}
    sizes = sorted(abs(error) for error in errors)
    return {
        "rows": len(errors),
        "median": f"{statistics.median(sizes):.1%}",
        "90th percentile": f"{sizes[min(len(sizes) - 1, round(0.9 * (len(sizes) - 1)))]:.1%}",
        "most optimistic": f"{min(errors):+.1%}",
        "most pessimistic": f"{max(errors):+.1%}",
    }


def show(results: list[dict[str, Any]]) -> None:
    """Print the table, in GiB."""
    tools = ("accelerate", "deepspeed", "llama-factory")
    print(f"{'id':>4} {'what':72} {'measured':>9} {'predicted':>9} {'error':>7} " + " ".join(f"{t:>13}" for t in tools))
    for one in results:
        measured, predicted = (one[name] / 2**30 for name in ("measured", "predicted"))
        verdict = "fits" if one["error"] <= 0 else "no fit"
        error = verdict if one["metric"] == "capacity" else f"{one['error']:+.1%}"
        theirs = " ".join(f"{one[tool] / 2**30:13.1f}" if one[tool] else f"{'–':>13}" for tool in tools)
        what = f"{one['id']:4} {one['what'][:58]:58} {one['phase'][:13]:13}"
        print(f"{what} {measured:9.2f} {predicted:9.2f} {error:>7} {theirs}")


if __name__ == "__main__":
    sys.exit(main())
