"""Real steps of the real stages on this machine's GPU: predicted against measured memory.

    python benchmarks/gpu_memory.py                 # SFT, reward, PPO × bf16, int8, nf4; random LLaMA of 0.9B
    python benchmarks/gpu_memory.py --cpu           # a tiny grid on the CPU: the resident set against its range
    python benchmarks/gpu_memory.py --stages ppo --precisions int8 nf4
    python benchmarks/gpu_memory.py --tiny          # SFT alone of the tiny grid; no table is kept

Every text is as long as the recipe allows, so that what is measured is the worst case that is predicted. Tables go to
``docs/measurements/``. Without a GPU it says so and ends with 0. An error is (predicted − measured) / measured.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpu_work import PRECISIONS, ROOT  # which finds the engine

from stackllama_engine.contract.base import DEMO_BASE
from stackllama_engine.contract.history import read_history
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.expected import Expected, expected
from stackllama_engine.launch.gpus import first_card
from stackllama_engine.launch.launcher import launch, plan
from stackllama_engine.launch.reconcile import reconcile
from stackllama_engine.launch.run_requests import stop

_LARGE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
_TINY = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 8000,
    "max_position_embeddings": 1024,
}
_ROWS = 64
_PATIENCE = 1800.0  # seconds per cell


class Size:
    """Lengths and batches of a grid."""

    def __init__(self, *, length: int, prompt: int, response: int, batch: int, rollouts: int) -> None:
        self.length, self.prompt, self.response, self.batch, self.rollouts = length, prompt, response, batch, rollouts

    def overrides(self, stage: Stage) -> list[str]:
        """Return the stage's recipe keys: three steps."""
        common = ["max_steps=3", "save_steps=0", "logging_steps=1", "dataset_train_split=all", "dataset_test_split=all"]
        if stage is Stage.PPO:
            return [
                *common,
                f"max_prompt_length={self.prompt}",
                f"response_length={self.response - 1}",
                f"per_device_train_batch_size={self.batch}",
                f"gradient_accumulation_steps={self.rollouts // self.batch}",
                f"max_eval_samples={self.rollouts}",
                f"local_rollout_forward_batch_size={self.rollouts}",
                "early_stopping=false",
            ]
        warm = ["warmup_steps=0"] if stage is Stage.SFT else []
        return [
            *common,
            *warm,
            f"max_length={self.length}",
            f"per_device_train_batch_size={self.batch}",
            "gradient_accumulation_steps=2",
            "max_eval_samples=4",
            "per_device_eval_batch_size=1",
        ]


TINY = Size(length=48, prompt=24, response=8, batch=2, rollouts=4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the grid, print it, write it; 1 when a run failed."""
    options = _options(arguments)
    card = first_card()
    if card is None and not options.cpu:
        print("No GPU here: nothing was measured. `--cpu` compares resident sets on a tiny grid.")
        return 0
    precisions = options.precisions or (["float32"] if options.cpu else ["bf16", "int8", "nf4"])
    small = TINY if options.tiny else Size(length=128, prompt=64, response=16, batch=2, rollouts=4)
    size = small if options.cpu else Size(length=1024, prompt=512, response=128, batch=4, rollouts=16)
    device = "CPU" if card is None or options.cpu else card.name
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        grid = Grid(Path(folder), size, on_cpu=options.cpu)
        rows = [row for precision in precisions for row in grid.measure(precision, options.stages)]
        _write(Path(folder) if options.tiny else options.out, device, rows)
    return 1 if any("failure" in row for row in rows) else 0


class Grid:
    """A random model, data as long as the recipe allows, and the runs on them."""

    def __init__(self, folder: Path, size: Size, *, on_cpu: bool) -> None:
        self.home = Home(folder / "home")
        self.size = size
        self.on_cpu = on_cpu
        self.base, count = make_model(folder / "base", _TINY if on_cpu else _LARGE)
        self.texts = _write_rows(folder / "texts.jsonl", count, prompt=size.length // 2, whole=size.length)
        self.questions = _write_rows(folder / "questions.jsonl", count, prompt=size.prompt - 1, whole=size.prompt + 8)

    def measure(self, precision: str, stages: list[str]) -> list[dict[str, Any]]:
        """Measure one precision; the reward run comes before PPO, whose responses its model scores."""
        rows: list[dict[str, Any]] = []
        reward_model = ""
        for stage in (Stage.SFT, Stage.REWARD, Stage.PPO):
            if stage.value not in stages and not (stage is Stage.REWARD and "ppo" in stages):
                continue
            if stage is Stage.PPO and not reward_model:
                rows.append({"stage": "ppo", "precision": precision, "failure": "there is no reward model for it"})
                continue
            run = self.run(stage, precision, reward_model)
            phase, cause = run.read_state().phase, run.read_state().cause
            if phase != "finished":
                rows.append({"stage": stage.value, "precision": precision, "failure": cause or phase})
                continue
            reward_model = run.id if stage is Stage.REWARD else reward_model
            prediction = expected(run, stage)
            assert prediction is not None
            if stage.value in stages:
                rows += [row | {"stage": stage.value, "precision": precision} for row in compare(run, prediction)]
                print(json.dumps(rows[-1]), flush=True)
        return rows

    def run(self, stage: Stage, precision: str, reward_model: str) -> RunDir:
        """Launch a stage and wait until it has ended."""
        data = self.questions if stage is Stage.PPO else self.texts
        words = [
            f"model_name_or_path={self.base}",
            f"dataset_name={data}",
            f"max_train_samples={_ROWS}",
            "num_processes=1",
            "lora_target_modules=all-linear",
            f"use_cpu={str(self.on_cpu).lower()}",
        ]
        words += [f"reward_model_path={reward_model}"] if stage is Stage.PPO else []
        recipe = load_recipe(stage, None, [*words, *self.size.overrides(stage), *PRECISIONS[precision]])
        run = launch(plan(self.home, recipe, allow=["eval-prompts"]))
        deadline = time.monotonic() + _PATIENCE
        while not reconcile(run).has_ended:
            if time.monotonic() > deadline:
                stop(run, wait=True)
            time.sleep(0.5)
        while run.lock_is_held():  # its supervisor still writes, where a folder is about to be removed
            time.sleep(0.1)
        return run


def make_model(path: Path, shape: dict[str, int]) -> tuple[Path, Callable[[str, str], int]]:
    """Save a random LLaMA in bfloat16 with the demo's tokenizer, and return its path and a counter of tokens."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from stackllama_engine.contract.prompt_format import PromptFormat
    from stackllama_engine.train.encoding import Encoder

    tokenizer: Any = AutoTokenizer.from_pretrained(DEMO_BASE)
    torch.manual_seed(0)
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    LlamaForCausalLM(LlamaConfig(**shape, **special)).bfloat16().save_pretrained(path)
    tokenizer.save_pretrained(path)
    encoder = Encoder(tokenizer, PromptFormat())

    def count(question: str, answer: str) -> int:
        return len(encoder.text_ids(question, answer) if answer else encoder.prompt(question))

    return path, count


def compare(run: RunDir, prediction: Expected) -> list[dict[str, Any]]:
    """Compare predicted and measured: on a GPU allocated per phase and reserved per run, on a CPU the resident set."""
    history, estimate = read_history(run.events_files()), prediction.estimate
    if not prediction.on_gpu:
        measured = history.memory["rss"] or 0.0
        return [_ranged("rss", estimate.device, measured)]
    predicted = {one.name: one.bytes for one in estimate.phases} if run.read_state().stage is Stage.PPO else {}
    predicted = predicted or {"train": estimate.allocated}
    rows = [
        _row(phase, "allocated", count, history.memory_by_phase.get(phase, {}).get("allocated", 0.0))
        for phase, count in predicted.items()
    ]
    held = history.memory.get("reserved") or 0.0
    return [*rows, _ranged("reserved", estimate.reserved, held)]


def _row(phase: str, metric: str, predicted: int, measured: float) -> dict[str, Any]:
    error = round(predicted / measured - 1, 4) if measured else None
    return {"phase": phase, "metric": metric, "predicted": predicted, "measured": round(measured), "error": error}


def _ranged(metric: str, interval: tuple[int, int], measured: float) -> dict[str, Any]:
    inside = interval[0] <= measured <= interval[1]
    return {
        "phase": "whole run",
        "metric": metric,
        "predicted": list(interval),
        "measured": round(measured),
        "inside": inside,
    }


def _write_rows(path: Path, count: Callable[[str, str], int], *, prompt: int, whole: int) -> Path:
    """Write pairs whose prompt has ``prompt`` tokens, and ``whole`` with either answer, end token included."""
    lines: list[str] = []
    for number in range(_ROWS):
        question = _filled(f"{number} why", lambda text: count(text, ""), prompt)
        answers = [_filled(word, lambda text, prompt=question: count(prompt, text), whole) for word in ("yes", "no")]
        lines.append(json.dumps({"question": question, "response_j": answers[0], "response_k": answers[1]}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _filled(beginning: str, count: Callable[[str], int], wanted: int) -> str:
    """Lengthen a text, a letter at a time from a good guess, until it has as many tokens as wanted at most."""
    words = max(0, wanted - count(beginning)) // max(1, count(beginning + " a" * 16) - count(beginning)) * 16
    while words and count(beginning + " a" * words) > wanted:
        words -= 1
    while count(beginning + " a" * (words + 1)) <= wanted:
        words += 1
    return beginning + " a" * words


def _write(out: Path, device: str, rows: list[dict[str, Any]]) -> None:
    """Write a table for people and the same as JSON."""
    import importlib.metadata

    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl", "bitsandbytes")}
    name = "memory-" + "".join(char if char.isalnum() else "-" for char in device.lower()).strip("-")
    lines = [
        f"# Memory, predicted against measured: {device}",
        "",
        f"`python benchmarks/gpu_memory.py`, {time.strftime('%Y-%m-%d')}; "
        + ", ".join(f"{key} {value}" for key, value in versions.items())
        + ".",
        "",
        "| stage | precision | phase | what | predicted MiB | measured MiB | error | in its range |",
        "|---|---|---|---|---:|---:|---:|---|",
    ]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    document = {"place": device, "versions": versions, "rows": rows}
    (out / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print("\n".join(lines))
    print(f"\nWritten to {out / name}.md and .json.")


def _cells(row: dict[str, Any]) -> list[str]:
    name = [row["stage"], row["precision"]]
    if "failure" in row:
        return [*name, " ".join(row["failure"].split())[:200].replace("|", "/"), "", "", "", "", ""]
    bounds = row["predicted"] if isinstance(row["predicted"], list) else [row["predicted"]]
    predicted = " to ".join(f"{count / 2**20:.0f}" for count in bounds)
    error = f"{row['error']:+.1%}" if row.get("error") is not None else ""
    inside = {True: "yes", False: "no", None: ""}[row.get("inside")]
    return [*name, row["phase"], row["metric"], predicted, f"{row['measured'] / 2**20:.0f}", error, inside]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Predicted against measured memory of real steps.")
    parser.add_argument("--cpu", action="store_true", help="a tiny grid on the CPU")
    parser.add_argument("--stages", nargs="+", default=["sft", "reward", "ppo"], choices=["sft", "reward", "ppo"])
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), help="default: bf16 int8 nf4")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements", help="where tables go")
    parser.add_argument("--tiny", action="store_true", help="SFT of the tiny grid on the CPU: whether it runs")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.cpu, options.stages, options.precisions = True, ["sft"], ["float32"]
    return options


if __name__ == "__main__":
    sys.exit(main())
