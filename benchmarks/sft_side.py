"""One side of ``gpu_sft.py`` in a process of its own: ours, TRL's SFTTrainer alone, or Unsloth; prints one JSON line.

    python benchmarks/sft_side.py ours FOLDER --model 7b --precision bf16
    python benchmarks/sft_side.py --tiny       # ours with a tiny model on the CPU, in a folder that is removed

Every document has half a row's tokens, so that each packed row holds two and no padding, whoever packs them.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import ppo_work
from ppo_work import ALPHA, RANK, SPECIAL, Work

MASKED = "ours, packed rows with masks"
SIDES = ("ours", MASKED, "TRL", "Unsloth")
PRECISIONS = ("bf16", "nf4")
_PER_DEVICE, _ACCUMULATION = 4, 2
_WARM_UP = 2
_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def row_tokens(model: str) -> int:
    """Return the tokens of a packed row: two documents."""
    return 64 if model == "tiny" else 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Train some steps and report them."""
    options = _options(arguments)
    if options.side == "Unsloth" and importlib.util.find_spec("unsloth") is None:
        print(json.dumps({"skipped": f"Unsloth is not installed for {sys.executable}"}))
        return 0
    ppo_work.quiet(on_gpu=options.model != "tiny")
    with tempfile.TemporaryDirectory() as folder:
        measure(options, options.folder or Path(folder))
    return 0


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Prepare what is not there yet, train, and print what it took."""
    if options.side == "Unsloth":
        import unsloth  # noqa: F401  # pyright: ignore[reportMissingImports]  # it must come before the libraries that it patches
    import floor
    import gpu_machine

    work, length = ppo_work.GPU[options.model], row_tokens(options.model)
    device = ppo_work.placement(options.model)["device"]
    steps = options.steps + _WARM_UP
    prepare(folder, options.model, work, length, 2 * _PER_DEVICE * _ACCUMULATION * steps)
    rates = gpu_machine.measure_rates(device)
    gpu_machine.release(device)
    train = train_ours if options.side in ("ours", MASKED) else train_theirs
    os.environ["STACKLLAMA_LEAVE_OUT"] = "varlen" if options.side == MASKED else ""
    times, peak = train(options, folder, steps, length)
    seconds = median(after - before for before, after in zip(times[_WARM_UP - 1 :], times[_WARM_UP:], strict=False))
    tokens = _PER_DEVICE * _ACCUMULATION * length
    shape = floor.Shape(
        work.hidden, work.intermediate, work.layers, work.heads, work.kv_heads or work.heads, work.vocabulary
    )
    least = floor.sft_step(shape, 2 * _PER_DEVICE * _ACCUMULATION, length // 2).seconds(rates)
    names = ("torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth")
    values = {
        "seconds_per_step": seconds,
        "tokens_per_second": tokens / seconds,
        "share_of_floor": least / seconds,
        "peak": peak,
        "rates": {"flop": rates.flop, "bytes": rates.bytes},
        "packages": ppo_work.versions(*(name for name in names if importlib.util.find_spec(name))),
    }
    print("\n" + json.dumps(values), flush=True)


def prepare(folder: Path, model: str, work: Work, length: int, documents: int) -> None:
    """Write the base and the documents, as text and as tokens, unless they are there."""
    import torch

    if not (folder / "base-complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        ppo_work.prepare(folder, 1, work, reward_model=False, **ppo_work.placement(model))
        (folder / "base-complete").touch()
    torch.manual_seed(0)
    words = torch.randint(len(SPECIAL), work.vocabulary, (documents, length // 2 - 3)).tolist()  # 3: marks and end
    half = len(words[0]) // 2
    question, answer = SPECIAL.index("Question:"), SPECIAL.index("Answer:")
    rows = [[question, *row[:half], answer, *row[half:], ppo_work.END] for row in words]
    (folder / "documents.json").write_text(json.dumps(rows))
    texts = [[" ".join(f"w{token}" for token in part) for part in (row[:half], row[half:])] for row in words]
    pairs = [json.dumps({"question": one, "response_j": other, "response_k": "w5"}) for one, other in texts]
    (folder / "pairs.jsonl").write_text("\n".join(pairs) + "\n")


def train_ours(options: argparse.Namespace, folder: Path, steps: int, length: int) -> tuple[list[float], float | None]:
    """Train by this project's SFT stage; return when each step was reported, and the peak of allocated memory.

    Raises:
        AssertionError: the rows did not hold as many tokens as they should.
    """
    import ppo_stage
    from gpu_work import PRECISIONS as KEYS

    from stackllama_engine.contract.events import EventReader
    from stackllama_engine.contract.history import read_history
    from stackllama_engine.contract.recipe import SFTRecipe
    from stackllama_engine.contract.recipe_io import load_recipe
    from stackllama_engine.contract.stages import Stage
    from stackllama_engine.train import sft

    on_gpu = options.model != "tiny"
    words = [
        f"model_name_or_path={folder / 'base'}",
        f"dataset_name={folder / 'pairs.jsonl'}",
        "dataset_train_split=all",
        "dataset_test_split=all",
        f"max_length={length}",
        f"per_device_train_batch_size={_PER_DEVICE}",
        f"gradient_accumulation_steps={_ACCUMULATION}",
        f"max_steps={steps}",
        "max_eval_samples=1",
        "eval_steps=0",
        "save_steps=0",
        "save_minutes=0",
        "logging_steps=1",
        "warmup_steps=0",
        "gradient_checkpointing=false",
        "lora_target_modules=all-linear",
        f"lora_r={RANK}",
        f"lora_alpha={ALPHA}",
        "lora_dropout=0",
        f"use_cpu={str(not on_gpu).lower()}",
        *KEYS[options.precision if on_gpu else "float32"],
    ]
    recipe = load_recipe(Stage.SFT, None, words)
    assert isinstance(recipe, SFTRecipe)
    with ppo_stage.session_of(recipe) as session:
        sft.run(recipe, session)
        session.reporter.phase("end")  # which reports the last phase's memory
        files = [session.run.attempt_dir(1) / "events.jsonl"]
        events = [each for each in EventReader(files[0]).read() if each.kind == "metrics" and "loss" in each.metrics]
        peak = read_history(files).memory_by_phase["train"].get("allocated")
    tokens = _PER_DEVICE * _ACCUMULATION * length
    assert events[-1].metrics["num_tokens"] == tokens * steps, (events[-1].metrics, tokens, steps)
    return [event.time for event in events], peak


def train_theirs(
    options: argparse.Namespace, folder: Path, steps: int, length: int
) -> tuple[list[float], float | None]:
    """Train by TRL's SFTTrainer, the model its own or Unsloth's; returns as :func:`train_ours`."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.time())

    model, tokenizer, lora = (_unsloth if options.side == "Unsloth" else _plain)(options, folder, length)
    rows = json.loads((folder / "documents.json").read_text())
    on_gpu = options.model != "tiny"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=scratch,
                report_to="none",
                save_strategy="no",
                logging_steps=1,
                max_steps=steps,
                max_length=length,
                packing=True,
                per_device_train_batch_size=_PER_DEVICE,
                gradient_accumulation_steps=_ACCUMULATION,
                gradient_checkpointing=False,
                learning_rate=2e-4,
                weight_decay=0.05,
                bf16=on_gpu,
                use_cpu=not on_gpu,
                disable_tqdm=True,
                seed=0,
            ),
            train_dataset=Dataset.from_dict({"input_ids": rows}),
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=[Clock()],
        )
        trainer.train()
    return times, float(torch.cuda.max_memory_allocated()) if on_gpu else None


def _plain(options: argparse.Namespace, folder: Path, _: int) -> tuple[Any, Any, Any]:
    """Return model, tokenizer and LoRA configuration as TRL's documentation has them."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    quantization = None
    if options.precision == "nf4" and options.model != "tiny":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder / "base",
        dtype="auto",
        quantization_config=quantization,
        device_map=ppo_work.placement(options.model)["device"],
    )
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    return model, AutoTokenizer.from_pretrained(folder / "base"), lora


def _unsloth(options: argparse.Namespace, folder: Path, length: int) -> tuple[Any, Any, Any]:
    """Return model and tokenizer by Unsloth, which has put its adapter on."""
    import torch
    from unsloth import FastLanguageModel  # pyright: ignore[reportMissingImports]

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(folder / "base"),
        max_seq_length=length,
        dtype=torch.bfloat16,
        load_in_4bit=options.precision == "nf4",
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0,
        bias="none",
        target_modules=_TARGETS,
        use_gradient_checkpointing=False,
        random_state=0,
    )
    return model, tokenizer, None


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One side of gpu_sft.py.")
    parser.add_argument("side", nargs="?", choices=SIDES, default="ours")
    parser.add_argument("folder", nargs="?", type=Path, help="where base and documents are kept; default: nowhere")
    parser.add_argument("--model", choices=ppo_work.GPU, default="7b", help="size of the random LLaMA")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps that count, after two to warm up")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU: whether it runs, not how fast")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.model, options.steps = "tiny", 1
    return options


if __name__ == "__main__":
    sys.exit(main())
