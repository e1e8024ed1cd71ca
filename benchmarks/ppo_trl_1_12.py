"""The work of ``ppo_work.py`` by trl 1.12.0's experimental ``PPOTrainer``, in its own environment; one JSON line.

The policy is a LoRA whose base, adapter off, is the reference. Value and reward models are models of their own, as it
wants them; the value model is trained whole, as its own examples do (``--value-lora``: through a LoRA as well).
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import ppo_work as work

work.quiet()
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer  # noqa: E402  # pyright: ignore[reportMissingImports]


class Marks(TrainerCallback):
    """A mark after each batch."""

    def __init__(self, meter: work.Meter) -> None:
        self._meter = meter

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A batch was rolled out and learned from."""
        self._meter.mark()


def main(folder: Path, batches: int, value_lora: bool) -> None:
    """Run and report."""
    torch.set_num_threads(work.THREADS)
    meter = work.Meter()
    tokenizer = AutoTokenizer.from_pretrained(folder / "base", padding_side="left")
    lora = LoraConfig(r=work.RANK, lora_alpha=work.ALPHA, target_modules=work.TARGETS, task_type="CAUSAL_LM")
    policy = AutoModelForCausalLM.from_pretrained(folder / "base")
    value = AutoModelForSequenceClassification.from_pretrained(folder / "reward")
    if value_lora:  # in place: PPOTrainer reads `base_model_prefix` and `score` of the model itself
        get_peft_model(
            value, LoraConfig(r=work.RANK, lora_alpha=work.ALPHA, target_modules=work.TARGETS, task_type="SEQ_CLS")
        )
    judge = AutoModelForSequenceClassification.from_pretrained(folder / "reward")
    rows = json.loads((folder / "prompts.json").read_text())[: (batches + 1) * work.BATCH]
    with tempfile.TemporaryDirectory() as scratch:
        config = PPOConfig(
            output_dir=scratch,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            fp16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            seed=0,
            learning_rate=work.LEARNING_RATE,
            per_device_train_batch_size=work.BATCH,
            gradient_accumulation_steps=1,
            num_mini_batches=work.BATCH // work.MINI,
            num_ppo_epochs=work.EPOCHS,
            total_episodes=(batches + 1) * work.BATCH,
            num_sample_generations=0,
            local_rollout_forward_batch_size=work.BATCH,
            response_length=work.RESPONSE,
            stop_token=None,
            temperature=1.0,
            kl_coef=work.KL,
            vf_coef=work.VALUE,
        )
        data = Dataset.from_dict({"input_ids": rows})
        trainer = PPOTrainer(
            config,
            tokenizer,
            policy,
            None,
            judge.eval().requires_grad_(False),
            data,
            value,
            eval_dataset=data,
            peft_config=lora,
            callbacks=[Marks(meter)],
        )
        trainer.train()
    meter.report(versions=work.versions("trl", "torch", "transformers", "peft", "numpy"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), "--value-lora" in sys.argv)
