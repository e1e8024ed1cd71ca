"""The memory formula against a trace of the real classes with fake tensors, configuration by configuration.

    python benchmarks/formula_vs_trace.py                    # every configuration: about ten minutes on one core
    python benchmarks/formula_vs_trace.py --only gemma       # those whose description holds a word
    python benchmarks/formula_vs_trace.py --json
    python benchmarks/formula_vs_trace.py --tiny             # two small configurations

Allocated bytes on one GPU from the second step on, at the longest batch. An error is (formula − trace) / trace:
negative is optimistic. Nothing is downloaded; sizes of models are in ``model_configs.py``.
"""

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / name) for name in ("engine", "benchmarks")]

from model_configs import config_of  # noqa: E402

from stackllama_engine.budget.estimate import Estimate, estimate  # noqa: E402
from stackllama_engine.budget.shapes import architecture_of  # noqa: E402
from stackllama_engine.budget.trace.request import Request, Trace  # noqa: E402
from stackllama_engine.contract.recipe_io import build_recipe  # noqa: E402
from stackllama_engine.contract.stages import Stage  # noqa: E402

Keys = dict[str, Any]
PLAIN: Keys = {"load_in_8bit": False, "dtype": "bfloat16"}
WIDE: Keys = {"load_in_8bit": False, "dtype": "float32"}
INT8: Keys = {"load_in_8bit": True, "dtype": "auto"}
NF4: Keys = {"load_in_8bit": False, "load_in_4bit": True, "use_bnb_nested_quant": True, "dtype": "auto"}
ALL: Keys = {"lora_target_modules": "all-linear"}
FEW: Keys = {"lora_target_modules": None}
"""Targets of the other configurations: PEFT's default."""
FULL: Keys = {**PLAIN, "use_peft": False}
AMP: Keys = {"bf16": True}
KEPT: Keys = {"gradient_checkpointing": False}
AGAIN: Keys = {"gradient_checkpointing": True}
PADDED: Keys = {"packing": False}
NO_DROPOUT: Keys = {"lora_dropout": 0.0}


def batch(size: int, length: int) -> Keys:
    """Return the keys for sequences per micro-batch and tokens per sequence."""
    return {"per_device_train_batch_size": size, "max_length": length}


def by(optim: str) -> Keys:
    """Return the key for an optimizer."""
    return {"optim": optim}


def rollout(rows: int, prompt: int, response: int) -> Keys:
    """Return the keys for responses at a time and their lengths."""
    return {
        "local_rollout_forward_batch_size": rows,
        "max_prompt_length": prompt,
        "response_length": response - 1,
        "max_eval_samples": rows,
    }


CASES: list[tuple[str, str, Keys]] = [
    ("gpt2", "sft", FULL | KEPT | batch(4, 1024)),
    ("gpt2", "sft", PLAIN | KEPT | batch(4, 1024)),
    ("SmolLM2-135M", "sft", FULL | batch(8, 512)),
    ("SmolLM2-135M", "sft", FULL | KEPT | by("adafactor") | batch(1, 128)),
    ("SmolLM2-135M", "sft", FULL | KEPT | by("adamw_8bit") | batch(1, 128)),
    ("SmolLM2-135M", "sft", FULL | KEPT | by("adamw_torch") | batch(1, 128)),
    ("SmolLM2-135M", "sft", FULL | KEPT | by("paged_adamw_32bit") | batch(1, 128)),
    ("Llama-3.2-1B", "sft", FULL | by("adafactor") | batch(1, 512)),
    ("Llama-3.2-1B", "sft", FULL | by("adamw_8bit") | batch(1, 512)),
    ("Llama-3.2-1B", "sft", FULL | by("paged_adamw_8bit") | batch(1, 512)),
    ("Llama-3.2-1B", "ppo", NF4 | ALL | by("adamw_8bit") | rollout(4, 64, 32)),
    ("llama-7b", "sft", FULL | by("adafactor") | batch(1, 1024)),
    ("SmolLM2-135M", "sft", WIDE | {"use_peft": False} | KEPT | batch(4, 512)),
    ("SmolLM2-360M", "sft", PLAIN | KEPT | batch(8, 1024)),
    ("SmolLM2-360M", "reward", WIDE | AMP | batch(8, 512)),
    ("SmolLM2-360M", "ppo", PLAIN | rollout(16, 256, 128)),
    ("Qwen2.5-0.5B", "sft", FULL | KEPT | batch(4, 1024)),
    ("Qwen2.5-0.5B", "sft", PLAIN | ALL | batch(8, 1024)),
    ("Qwen2.5-0.5B", "ppo", WIDE | AMP | rollout(8, 256, 128)),
    ("Qwen2.5-0.5B", "ppo", PLAIN | {"ent_coef": 0.01, "per_device_train_batch_size": 8} | rollout(8, 64, 128)),
    ("Qwen3-0.6B", "sft", PLAIN | KEPT | batch(4, 1024)),
    ("TinyLlama_v1.1", "sft", INT8 | AMP | batch(8, 1024)),
    ("TinyLlama_v1.1", "reward", PLAIN | batch(8, 512)),
    ("Llama-3.2-1B", "sft", FULL | batch(4, 2048)),
    ("Llama-3.2-1B", "sft", NF4 | ALL | AMP | batch(8, 1024)),
    ("Llama-3.2-1B", "ppo", INT8 | AMP | rollout(16, 512, 128)),
    ("pythia-1.4b", "sft", PLAIN | batch(4, 1024)),
    ("pythia-1.4b", "sft", FULL | KEPT | batch(4, 1024)),
    ("Qwen2.5-1.5B", "sft", NF4 | batch(4, 1024) | AMP),
    ("Qwen2.5-1.5B", "reward", PLAIN | ALL | AGAIN | batch(8, 1024)),
    ("gemma-2b", "sft", PLAIN | batch(4, 1024)),
    ("gemma-2b", "sft", INT8 | AMP | batch(2, 1024)),
    ("gemma-2-2b", "sft", PLAIN | batch(2, 1024)),
    ("gemma-2-2b", "sft", PLAIN | KEPT | batch(1, 1024)),
    ("Llama-3.2-3B", "sft", PLAIN | KEPT | PADDED | NO_DROPOUT | batch(4, 768)),
    ("Llama-3.2-3B", "sft", FULL | KEPT | batch(2, 1024)),
    ("Llama-3.2-3B", "ppo", PLAIN | AGAIN | rollout(32, 512, 256) | {"per_device_train_batch_size": 4}),
    ("phi-2", "sft", PLAIN | KEPT | batch(2, 1024)),
    ("phi-2", "sft", FULL | batch(2, 1024)),
    ("llama-7b", "sft", INT8 | batch(4, 1024)),
    ("llama-7b", "sft", INT8 | ALL | NO_DROPOUT | batch(4, 1024)),
    ("llama-7b", "sft", INT8 | ALL | AMP | batch(4, 1024)),
    ("llama-7b", "sft", PLAIN | ALL | AMP | batch(2, 1024)),
    ("llama-7b", "sft", PLAIN | ALL | AMP | KEPT | batch(2, 1024)),
    ("llama-7b", "reward", PLAIN | ALL | AMP | batch(4, 1024)),
    ("llama-7b", "reward", PLAIN | ALL | AMP | AGAIN | NO_DROPOUT | batch(4, 1024)),
    ("llama-7b", "ppo", PLAIN | ALL | AMP | rollout(64, 512, 128)),
    ("llama-7b", "ppo", PLAIN | ALL | AMP | rollout(8, 512, 128) | {"per_device_train_batch_size": 16}),
    ("llama-7b", "ppo", NF4 | ALL | AMP | rollout(8, 512, 128)),
    ("llama-7b", "sft", INT8 | KEPT | batch(1, 512)),
    ("llama-7b", "sft", NF4 | batch(4, 1024)),
    ("llama-7b", "sft", NF4 | ALL | AMP | NO_DROPOUT | batch(1, 2048)),
    ("llama-7b", "sft", PLAIN | ALL | NO_DROPOUT | {"lora_r": 64} | batch(4, 1024)),
    ("llama-7b", "sft", FULL | batch(1, 1024) | {"gradient_accumulation_steps": 8}),
    ("SmolLM2-360M", Stage.PREFERENCE, PLAIN | KEPT | batch(2, 512)),
    ("Llama-3.2-1B", Stage.PREFERENCE, PLAIN | batch(2, 1024)),
    ("Qwen2.5-1.5B", Stage.PREFERENCE, NF4 | ALL | AMP | batch(1, 1024)),
    ("llama-7b", Stage.PREFERENCE, INT8 | batch(2, 512)),
    ("llama-7b", Stage.PREFERENCE, PLAIN | ALL | NO_DROPOUT | KEPT | batch(1, 512)),
    ("llama-7b", "sft", WIDE | AMP | batch(4, 1024)),
    ("llama-7b", "reward", PLAIN | batch(4, 512)),
    ("llama-7b", "reward", INT8 | AGAIN | batch(4, 512)),
    ("llama-7b", "ppo", INT8 | rollout(8, 512, 128)),
    ("llama-7b", "ppo", NF4 | AMP | rollout(8, 512, 128)),
    ("llama-7b", "ppo", PLAIN | rollout(64, 512, 128)),
    ("llama-7b", "ppo", PLAIN | {"policy_adapter_path": "x", "lora_r": 128} | rollout(8, 512, 128)),
    ("Mistral-7B-v0.1", "sft", PLAIN | AMP | batch(2, 2048)),
    ("Mistral-7B-v0.1", "reward", PLAIN | AGAIN | AMP | batch(4, 1024)),
    ("Qwen2.5-7B", "sft", INT8 | AMP | batch(2, 2048)),
    ("Qwen2.5-7B", "sft", NF4 | ALL | AMP | batch(2, 1024)),
    ("Qwen2.5-7B", "ppo", PLAIN | AGAIN | rollout(16, 512, 256)),
    ("Llama-3.1-8B", "sft", PLAIN | batch(1, 8192)),
    ("Llama-3.1-8B", "sft", INT8 | batch(1, 1024)),
    ("Llama-3.1-8B", "sft", FULL | batch(1, 2048)),
    ("Llama-3.1-8B", "ppo", INT8 | AMP | AGAIN | rollout(32, 1024, 512)),
    ("gemma-7b", "sft", NF4 | AMP | batch(2, 1024)),
    ("Llama-2-13b-hf", "sft", INT8 | AMP | batch(4, 1024)),
    ("Llama-2-13b-hf", "reward", NF4 | AMP | AGAIN | batch(2, 512)),
    ("Llama-2-13b-hf", "ppo", PLAIN | rollout(8, 512, 128)),
    ("Qwen2.5-32B", "sft", NF4 | AMP | batch(1, 1024)),
    ("Llama-2-70b-hf", "sft", NF4 | AMP | batch(1, 1024)),
    ("Llama-2-70b-hf", "ppo", NF4 | AMP | AGAIN | rollout(8, 512, 128)),
    ("Llama-3.1-70B", "sft", NF4 | ALL | AMP | batch(1, 2048)),
    ("Llama-3.1-70B", "sft", PLAIN | batch(1, 1024)),
]


TINY = [
    ("SmolLM2-135M", "sft", FULL | KEPT | batch(1, 128)),
    ("SmolLM2-135M", Stage.PREFERENCE, PLAIN | KEPT | batch(1, 128)),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and its summary."""
    parser = argparse.ArgumentParser(description="The memory formula against a trace with fake tensors.")
    parser.add_argument("--only", default="", help="a word of the description")
    parser.add_argument("--phases", action="store_true", help="the phases of both")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--tiny", action="store_true", help="two small configurations: whether it runs")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    rows: list[dict[str, Any]] = []
    for model, stage, keys in TINY if options.tiny else CASES:
        if options.only in describe(model, stage, keys):
            row = compare(model, Stage(stage), keys)
            rows.append(row)
            if not options.json:
                show(row, options.phases)
    summary = statistics_of([row["error"] for row in rows])
    print(json.dumps({"summary": summary, "rows": rows}, indent=2) if options.json else summary)
    return 0


def compare(model: str, stage: Stage, keys: Keys) -> dict[str, Any]:
    """Compute one configuration by both."""
    from stackllama_engine.budget.trace.measure import measure

    config = config_of(model)
    needed = (
        {"model_name_or_path": model, "gradient_checkpointing": stage in (Stage.SFT, Stage.PREFERENCE)}
        | FEW
        | ({"reward_model_path": "adapter"} if stage is Stage.PPO else {})
    )
    recipe = build_recipe(stage, needed | keys)
    arch = architecture_of(config, model, model, frozenset())
    predicted: Estimate = estimate(recipe, arch, on_gpu=True)  # type: ignore[arg-type]
    traced: Trace = measure(Request(stage=stage, recipe=needed | keys, config=config))
    return {
        "what": describe(model, str(stage), keys),
        "parameters": arch.parameters,
        "formula": predicted.allocated,
        "formula_phase": predicted.peak,
        "formula_phases": {one.name: one.bytes for one in predicted.phases},
        "trace": traced.allocated,
        "trace_phase": traced.peak,
        "trace_phases": traced.phases,
        "seconds": traced.seconds,
        "error": predicted.allocated / traced.allocated - 1,
    }


def describe(model: str, stage: str, keys: Keys) -> str:
    """Return one line about a configuration."""
    if keys.get("load_in_8bit"):
        base = "int8"
    elif keys.get("load_in_4bit"):
        base = "nf4"
    else:
        base = str(keys["dtype"]).replace("bfloat16", "bf16").replace("float32", "fp32")
    words = [model, stage, base, "full" if keys.get("use_peft") is False else "lora"]
    words += ["all-linear"] * ("lora_target_modules" in keys)
    words += [f"r{keys['lora_r']}"] if "lora_r" in keys else []
    words += ["amp"] * ("bf16" in keys)
    words += [keys["optim"]] if "optim" in keys else []
    words += ["entropy"] if "ent_coef" in keys else []
    if "gradient_checkpointing" in keys:
        words.append("checkpointed" if keys["gradient_checkpointing"] else "kept")
    if "max_length" in keys:
        words.append(f"{keys['per_device_train_batch_size']}×{keys['max_length']}")
    else:
        rows = keys["local_rollout_forward_batch_size"]
        words.append(f"{rows}×({keys['max_prompt_length']}+{keys['response_length'] + 1})")
    return " ".join(words)


def statistics_of(errors: list[float]) -> dict[str, Any]:
    """Return median and worst of the absolute errors, and how many are within 1 and 5 %."""
    if not errors:
        return {"configurations": 0}
    sizes = sorted(abs(error) for error in errors)
    return {
        "configurations": len(sizes),
        "median": f"{statistics.median(sizes):.3%}",
        "90th percentile": f"{sizes[round(0.9 * (len(sizes) - 1))]:.2%}",
        "worst": f"{sizes[-1]:.2%}",
        "most optimistic": f"{min(errors):+.2%}",
        "within 1 %": sum(size <= 0.01 for size in sizes),
        "within 5 %": sum(size <= 0.05 for size in sizes),
    }


def show(row: dict[str, Any], phases: bool) -> None:
    """Print one row, in GiB."""
    formula, trace = row["formula"] / 2**30, row["trace"] / 2**30
    print(
        f"{row['what']:62} formula {formula:8.3f} trace {trace:8.3f} GiB {row['error']:+7.2%} "
        f"{row['trace_phase']:24} {row['seconds']:5.1f} s",
        flush=True,
    )
    if phases:
        for side in ("formula_phases", "trace_phases"):
            print("   ", side, {name: round(count / 2**30, 3) for name, count in row[side].items()})


if __name__ == "__main__":
    sys.exit(main())
