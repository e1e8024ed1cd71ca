"""Accuracy benchmark on a generated table: rows it can predict, and rows it must skip."""

import csv
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COLUMNS: tuple[str, ...] = (
    "id",
    "stack",
    "model",
    "method",
    "weights_dtype",
    "quant",
    "lora_r",
    "lora_targets",
    "batch",
    "seq_len",
    "grad_ckpt",
    "optimizer",
    "gpus",
    "parallel",
    "hardware",
    "measured",
    "unit",
    "metric",
    "grade",
    "notes",
)
LORA = {
    "id": "1",
    "stack": "hand-written loop",
    "model": "meta-llama/Llama-3.2-3B",
    "method": "lora",
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
OTHERS = [
    {**LORA, "id": "2", "gpus": "8"},
    {**LORA, "id": "3", "model": "something else"},
    {**LORA, "id": "4", "measured": "OOM"},
    {**LORA, "id": "5", "stack": "unknown"},
]


def test_accuracy_table_lists_predictable_rows(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows([LORA, *OTHERS])
    script = ROOT / "benchmarks" / "memory_accuracy.py"
    result = subprocess.run(
        [sys.executable, str(script), str(table), "--json"], capture_output=True, text=True, check=True
    )
    found = json.loads(result.stdout)
    assert (found["summary"]["rows"], found["summary"]["predicted"]) == (5, 1)
    (row,) = found["rows"]
    assert (row["id"], row["metric"], row["deepspeed"]) == (1, "reserved", 0)
    assert abs(row["error"]) < 0.03
    assert row["accelerate"] == 8 * 3_212_749_824
    assert found["summary"]["grade A"]["rows"] == 1
    shown = subprocess.run([sys.executable, str(script), str(table)], capture_output=True, text=True, check=True)
    assert "most optimistic" in shown.stdout
