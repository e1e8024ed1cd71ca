"""Recorder of TRL 1.12.0's PPO on the demo, against which the engine's is compared.

    make oracles
    .venv/bin/python -m tests.outcomes.record_trl          # some ten minutes on two cores

It starts one process per seed in TRL's environment (``tests/oracles/environment.py``), with the same base, reward
model, prompts and settings as the engine's run, and writes ``trl.json`` (the curves, what it was made of) and
``trl.safetensors`` (every held-out question's metrics, ``[seeds, temperatures, 3, questions]``). TRL's value model is
the reward model, all of it trained; its gradients are not clipped.
"""
# pyright: reportMissingImports=false

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SEEDS = (0, 1, 3)
TEMPERATURES = (1.0, 0.6, 0.3, 0.0)
EVALUATION_SEED = 123
HERE = Path(__file__).resolve().parent
SAME = (
    "learning_rate",
    "lr_scheduler_type",
    "weight_decay",
    "num_mini_batches",
    "num_ppo_epochs",
    "response_length",
    "temperature",
    "kl_coef",
    "cliprange",
    "cliprange_value",
    "gamma",
    "lam",
    "vf_coef",
    "missing_eos_penalty",
)
"""Keys with the same name and meaning on both sides."""
CURVE = ("objective/scores", "objective/kl", "objective/rlhf_reward")


def record(folder: Path, seeds: tuple[int, ...] = SEEDS) -> None:
    """Train and evaluate TRL for every seed, and write the recording."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
    from tests.oracles.environment import python_of

    from . import parts

    python = python_of("trl")
    if python is None:
        raise SystemExit("TRL's environment is not there: run `make oracles` first.")
    if not (folder / "parts").exists():
        parts.make(folder / "parts")
    root = HERE.parents[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(root), str(root / "engine"))),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }

    def run(seed: int) -> None:
        if not (folder / f"seed-{seed}.json").exists():  # else: done by an interrupted recording
            command = [str(python), "-m", "tests.outcomes.record_trl", "--one", str(seed), "--folder", str(folder)]
            subprocess.run(command, env=environment, cwd=root, check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, seeds))
    found = [load_file(folder / f"seed-{seed}.safetensors") for seed in seeds]
    save_file(
        {"trl": torch.stack([one["trl"] for one in found]).half(), "base": found[0]["base"].half()},
        HERE / "trl.safetensors",
    )
    facts = {
        "fingerprint": parts.fingerprint(),
        "trl": "1.12.0",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "seeds": list(seeds),
        "temperatures": list(TEMPERATURES),
        "curves": {str(seed): json.loads((folder / f"seed-{seed}.json").read_text()) for seed in seeds},
    }
    (HERE / "trl.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def one(folder: Path, seed: int) -> None:
    """Train and evaluate one seed with TRL, in its own environment."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    from stackllama_engine.contract.prompt_format import PromptFormat
    from stackllama_engine.data import demo_data
    from stackllama_engine.train import models
    from stackllama_engine.train.encoding import Encoder

    from . import parts
    from .evaluate import evaluate

    torch.set_num_threads(1)
    where = parts.Parts(*(folder / "parts" / name for name in ("base", "reward", "classifier")))
    keys = parts.settings()
    tokenizer = models.load_tokenizer(str(where.base))
    torch.manual_seed(seed)
    policy = AutoModelForCausalLM.from_pretrained(where.base, dtype=torch.float32)
    value, reward_model = (
        AutoModelForSequenceClassification.from_pretrained(where.classifier, dtype=torch.float32) for _ in range(2)
    )
    reward_model.eval().requires_grad_(False)
    for model in (value, reward_model):
        model.config.pad_token_id = tokenizer.pad_token_id
    batch = keys["per_device_train_batch_size"] * keys["gradient_accumulation_steps"] * keys["num_mini_batches"]
    curve: list[dict[str, float]] = []

    class Log(TrainerCallback):
        """Keeps the curve."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            """Append the metrics of a step."""
            if logs and CURVE[0] in logs:
                curve.append({name: round(float(logs[name]), 5) for name in CURVE})

    encoder = Encoder(tokenizer, PromptFormat())
    data = Dataset.from_dict({"input_ids": [encoder.prompt(q) for q in demo_data.questions("rl", seed)]})
    trainer = PPOTrainer(
        PPOConfig(
            output_dir=str(folder / f"scratch-{seed}"),
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            seed=seed,
            logging_steps=1,
            num_sample_generations=0,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=1,
            local_rollout_forward_batch_size=batch,
            total_episodes=keys["max_steps"] * batch,
            stop_token="eos",
            **{key: keys[key] for key in SAME},
        ),
        tokenizer,
        policy,
        None,
        reward_model,
        data,
        value,
        eval_dataset=data,
        peft_config=LoraConfig(
            r=keys["lora_r"],
            lora_alpha=keys["lora_alpha"],
            target_modules=keys["lora_target_modules"],
            task_type="CAUSAL_LM",
            lora_dropout=0.0,
        ),
        callbacks=[Log()],
    )
    trainer.train()
    base = AutoModelForCausalLM.from_pretrained(where.base, dtype=torch.float32).eval()
    how: dict[str, Any] = {
        "length": keys["response_length"],
        "penalty": keys["missing_eos_penalty"],
        "seed": EVALUATION_SEED,
    }
    columns = {
        name: torch.stack([evaluate(who, base, reward_model, tokenizer, temperature=t, **how) for t in TEMPERATURES])
        for name, who in (("trl", trainer.model.policy.eval()), ("base", base))
        if name == "trl" or seed == SEEDS[0]
    }
    from safetensors.torch import save_file

    save_file(columns, folder / f"seed-{seed}.safetensors")
    (folder / f"seed-{seed}.json").write_text(json.dumps(curve), encoding="utf-8")


def main() -> None:
    """Record; ``--keep`` takes the adapters of a finished demo first."""
    parser = argparse.ArgumentParser(description="Record TRL 1.12.0's PPO on the demo.")
    parser.add_argument("--keep", type=Path, help="run directory of a finished demo pipeline, whose adapters to keep")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    options = parser.parse_args()
    if options.one is not None:
        one(options.folder, options.one)
        return
    if options.keep:
        from . import parts

        for name in ("sft", "reward"):
            parts.keep(options.keep.parent / f"{options.keep.name}-{name}", name)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="trl-"))
    folder.mkdir(parents=True, exist_ok=True)
    record(folder, tuple(options.seeds))
    if options.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))
    main()
