"""A tiny model learns to solve word problems by PPO, from nothing but whether its number is right.

    python benchmarks/arithmetic.py base FOLDER             # the base, once: some minutes
    python benchmarks/arithmetic.py record FOLDER           # PPO with three seeds, some minutes of one core each
    python benchmarks/arithmetic.py write                   # docs/measurements/arithmetic.md, from arithmetic.json
    python benchmarks/arithmetic.py --tiny                  # all of it in a minute, in a folder that is removed

The problems are in ``arithmetic_problems.py``. The base is a Llama of 0.3 million parameters, trained from nothing on
right equations, numbers read back from a text, and problems with the answers of a crowd that rarely picks the right
operation. PPO is the project's own stage, launched as anyone launches it; its evaluations are the accuracy on held-out
problems, sampled at the temperature of training, with the same noise before, between and after.
"""

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import arithmetic_problems
import msgspec
import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "engine"))

from stackllama_engine.contract.events import EventReader  # noqa: E402
from stackllama_engine.contract.prompt_format import PromptFormat  # noqa: E402
from stackllama_engine.contract.run_dir import RunDir, State  # noqa: E402
from stackllama_engine.data.manifest import MANIFEST, Report  # noqa: E402
from stackllama_engine.launch.reconcile import reconcile  # noqa: E402
from stackllama_engine.train import demo_base  # noqa: E402

RECORDING = ROOT / "docs" / "measurements" / "arithmetic.json"
DOCUMENT = ROOT / "docs" / "measurements" / "arithmetic.md"
MARKS = ("<!-- {}: written by benchmarks/arithmetic.py -->\n", "<!-- end of {} -->\n")
SEEDS = (0, 1, 2)
_B, _T = 16, 96
_PROBLEMS = 0.4
"""Share of problems in the base's training text."""
_SIZES = {"rl": 3000, "evaluation": 300}
RECIPE: dict[str, Any] = {
    "dtype": "float32",
    "load_in_8bit": False,
    "use_cpu": True,
    "prompt_format": "question_answer",
    "reward_funcs": ["stackllama_engine.rewards:exact_number_strict"],
    "reward_columns": ["answer"],
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_target_modules": "all-linear",
    "max_train_samples": None,
    "max_eval_samples": None,
    "max_steps": 200,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 32,
    "gradient_accumulation_steps": 1,
    "num_mini_batches": 3,
    "num_ppo_epochs": 1,
    "local_rollout_forward_batch_size": 96,
    "max_prompt_length": 64,
    "response_length": 20,
    "kl_coef": 0.01,
    "ent_coef": 0.01,
    "adap_kl_ctrl": False,
    "logging_steps": 1,
    "eval_steps": 20,
    "eval_temperatures": [0],
    "save_steps": 0,
}
TINY = {"max_steps": 2, "max_eval_samples": 8, "max_train_samples": 96, "eval_steps": 1}


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the base, record PPO on it, or write the document."""
    parser = argparse.ArgumentParser(description="A tiny model learns word problems by PPO.")
    parser.add_argument("what", nargs="?", choices=("base", "record", "write"))
    parser.add_argument("folder", nargs="?", type=Path, help="holds base, data and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="seeds of PPO")
    parser.add_argument("--tiny", action="store_true", help="a few steps of everything: whether it runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.tiny:
        with tempfile.TemporaryDirectory() as folder:
            make_base(Path(folder), steps=3)
            print(table(record(Path(folder), (0,), TINY)))
    elif options.what == "write":
        recording = json.loads(RECORDING.read_text(encoding="utf-8"))
        DOCUMENT.write_text(written(DOCUMENT.read_text(encoding="utf-8"), recording), encoding="utf-8")
    elif options.what is None or options.folder is None:
        parser.error("name what to do, and the folder")
    elif options.what == "base":
        print(json.dumps(make_base(options.folder, steps=3000), indent=1))
    else:
        recording = record(options.folder, options.seeds)
        RECORDING.write_text(json.dumps(recording, indent=1) + "\n", encoding="utf-8")
        print(table(recording))
    return 0


def texts() -> Iterator[str]:
    """Yield endless training texts of the base: a problem with the crowd's answer, or a few lines without one."""
    draw = random.Random("texts 0")
    problems, lines = arithmetic_problems.crowd(0), arithmetic_problems.lines(0)
    while True:
        if draw.random() < _PROBLEMS:
            yield PromptFormat().render(*next(problems))
        else:
            yield "\n".join(itertools.islice(lines, 3))


def batches(tokenizer: Any) -> Iterator[torch.Tensor]:
    """Yield endless ``(B, T)`` int64 batches of packed texts, with an end token after each."""
    stream, tokens = texts(), []
    while True:
        while len(tokens) < _B * _T:
            tokens += [*tokenizer(next(stream))["input_ids"], tokenizer.eos_token_id]
        yield torch.tensor(tokens[: _B * _T]).view(_B, _T)
        tokens = tokens[_B * _T :]


def make_base(folder: Path, steps: int) -> dict[str, Any]:
    """Train and save the base; return its facts."""
    torch.manual_seed(0)
    started = time.process_time()
    tokenizer = demo_base.build_tokenizer(itertools.islice(texts(), 3000), vocab_size=512)
    model = demo_base.build_model(tokenizer, hidden_size=96, layers=3)
    loss = demo_base.train(model, batches(tokenizer), [], steps)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    facts = {"parameters": model.num_parameters(), "steps": steps, "loss": loss}
    facts["cpu_seconds"] = round(time.process_time() - started)
    (folder / "base.json").write_text(json.dumps(facts), encoding="utf-8")
    return facts


def write_data(folder: Path) -> Path:
    """Write the problems as a prepared directory, whose splits are files; return it."""
    data = folder / "data"
    data.mkdir(exist_ok=True)
    (data / MANIFEST).write_bytes(msgspec.json.encode(Report(source="arithmetic_problems.py")))
    parts: dict[str, arithmetic_problems.Part] = {"rl": "training", "evaluation": "held-out"}
    for split, part in parts.items():
        rows = arithmetic_problems.rows(part, _SIZES[split])
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return data


def record(folder: Path, seeds: Sequence[int], more: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run PPO with all seeds at once, one thread each; return all that the document says."""
    recipe = RECIPE | {"model_name_or_path": str(folder / "base"), "dataset_name": str(write_data(folder))}
    recipe |= more or {}
    file = folder / "ppo.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    with ThreadPoolExecutor(len(seeds)) as pool:
        results = pool.map(lambda seed: _ppo(folder, file, seed), seeds)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, no GPU",
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "base": json.loads((folder / "base.json").read_text(encoding="utf-8")),
        "questions": recipe["max_eval_samples"] or _SIZES["evaluation"],
        "seeds": dict(zip(map(str, seeds), results, strict=True)),
    }


def _ppo(folder: Path, file: Path, seed: int) -> dict[str, Any]:
    """Launch the stage, wait for it, and read what it left."""
    name = f"seed-{seed}"
    program = str(Path(sys.executable).with_name("stackllama-console"))
    command = [program, "--home", str(folder / "home"), "launch", "ppo", str(file), f"seed={seed}", "--name", name]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, check=True)
    run, cpu = RunDir(folder / "home" / "runs" / name), 0.0
    while not (state := reconcile(run)).has_ended:
        cpu = max(cpu, _cpu_seconds(state))
        time.sleep(1)
    if state.phase != "finished":
        sys.exit(f"{run.path} is {state.phase}: {state.cause}")
    result = run.read_json("result.json")
    points: dict[str, float | None] = {}
    for event in EventReader(run.attempt_dir(1) / "events.jsonl").read():
        if event.kind == "metrics" and "eval/mean_reward" in event.metrics:
            points[str(event.step)] = event.metrics["eval/mean_reward"]
    greedy = {row["policy"]: row["mean_reward"] for row in result["comparison"] if row["temperature"] == 0}
    return {
        "curve": points,
        "before": result["before"]["mean_reward"],
        "after": result["after"]["mean_reward"],
        "greedy_before": greedy[False],
        "greedy_after": greedy[True],
        "kl": result["after"]["kl"],
        "seconds": result["seconds"],
        "cpu_seconds": round(cpu),
    }


def _cpu_seconds(state: State) -> float:
    """Return the CPU time of the stage's processes so far; 0 before and after."""
    try:
        worker = psutil.Process(state.worker.pid) if state.worker else None
        processes = [worker, *worker.children(recursive=True)] if worker else []
        return sum(sum(process.cpu_times()[:2]) for process in processes)
    except psutil.NoSuchProcess:
        return 0.0


def table(recording: dict[str, Any]) -> str:
    """Return the accuracies per seed and their medians as a Markdown table."""
    columns = {"before": "before", "after": "after", "greedy_before": "greedy, before", "greedy_after": "greedy, after"}
    seeds: dict[str, dict[str, Any]] = recording["seeds"]
    known = [column for column in columns if all(column in facts for facts in seeds.values())]
    rows = [[seed, *(facts[column] for column in known), facts["cpu_seconds"]] for seed, facts in seeds.items()]
    rows.append(["median", *(statistics.median(row[index] for row in rows) for index in range(1, len(known) + 2))])
    lines = [
        f"| seed | {' | '.join(columns[column] for column in known)} | CPU minutes |",
        "|---" * (len(known) + 2) + "|",
    ]
    for seed, *accuracies, seconds in rows:
        cells = [str(seed), *(f"{accuracy:.1%}" for accuracy in accuracies), f"{seconds / 60:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def curve(recording: dict[str, Any]) -> str:
    """Return held-out accuracy over the steps of PPO, one column per seed, and the median, as a Markdown table."""
    curves = [facts["curve"] for facts in recording["seeds"].values()]
    lines = [f"| step | {' | '.join(f'seed {seed}' for seed in recording['seeds'])} | median |"]
    lines.append("|---" * (len(curves) + 2) + "|")
    for step in curves[0]:
        values = [one[step] for one in curves]
        cells = [step, *(f"{value:.1%}" for value in [*values, statistics.median(values)])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def recorded(recording: dict[str, Any]) -> str:
    """Return the sentence on how it was recorded."""
    base = recording["base"]
    programs = ", ".join(f"{name} {number}" for name, number in recording["versions"].items())
    return (
        f"Recorded {recording['date']}: {recording['machine']}, one thread, other programs on both cores; {programs}. "
        f"Base: {base['parameters']:,} parameters, {base['steps']:,} steps, {base['cpu_seconds'] / 60:.1f} CPU minutes."
    )


def written(document: str, recording: dict[str, Any]) -> str:
    """Return a document with the recording between its marks."""
    for name, text in (("accuracy", table), ("curve", curve), ("recorded", recorded)):
        begin, end = (mark.format(name) for mark in MARKS)
        before, _, rest = document.partition(begin)
        document = f"{before}{begin}{text(recording)}\n{end}{rest.partition(end)[2]}"
    return document


if __name__ == "__main__":
    sys.exit(main())
