"""The work of ``ppo_work.py`` by trl 1.12.0's experimental ``PPOTrainer``, in its own environment; one JSON line.

The policy is a LoRA whose base, adapter off, is the reference. Value and reward models are models of their own, as it
wants them; the value model is trained whole, as its own examples do (``--value-lora``: through a LoRA as well).
"""

import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ppo_work
from ppo_work import Work

ppo_work.quiet()
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

    def __init__(self, meter: ppo_work.Meter) -> None:
        self._meter = meter

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the end of a batch that was rolled out and learned from."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._meter.mark()


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the prepared work and report it."""
    parser = ppo_work.parser("The work of ppo_work.py by trl 1.12.0.")
    parser.add_argument("--value-lora", action="store_true", help="train the value model through a LoRA")
    options = parser.parse_args(arguments)
    work = ppo_work.work_of(options)
    if options.folder is not None:
        measure(options.folder, options.batches, work, value_lora=options.value_lora)
    elif options.tiny:
        with tempfile.TemporaryDirectory() as folder:
            ppo_work.prepare(Path(folder), options.batches + 1, work)
            measure(Path(folder), options.batches, work, value_lora=options.value_lora)
    else:
        parser.error("name the folder")
    return 0


def measure(folder: Path, batches: int, work: Work, *, value_lora: bool) -> None:
    """Do the prepared work and report it."""
    ppo_work.set_threads()
    on_gpu = torch.cuda.is_available()
    micro = work.micro or work.batch
    meter = ppo_work.Meter()
    tokenizer = AutoTokenizer.from_pretrained(folder / "base", padding_side="left")
    lora = LoraConfig(r=ppo_work.RANK, lora_alpha=ppo_work.ALPHA, target_modules=_targets(work), task_type="CAUSAL_LM")
    policy = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="auto")
    value = AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype="auto")
    if value_lora:  # in place: PPOTrainer reads `base_model_prefix` and `score` of the model itself
        get_peft_model(
            value,
            LoraConfig(r=ppo_work.RANK, lora_alpha=ppo_work.ALPHA, target_modules=_targets(work), task_type="SEQ_CLS"),
        )
    reward_model = AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype="auto")
    rows = json.loads((folder / "prompts.json").read_text())[: (batches + 1) * work.batch]
    with tempfile.TemporaryDirectory() as scratch:
        config = PPOConfig(
            output_dir=scratch,
            report_to="none",
            save_strategy="no",
            use_cpu=not on_gpu,
            bf16=on_gpu,
            fp16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            seed=0,
            learning_rate=ppo_work.LEARNING_RATE,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=work.batch // micro,
            num_mini_batches=work.batch // work.mini,
            num_ppo_epochs=work.epochs,
            total_episodes=(batches + 1) * work.batch,
            num_sample_generations=0,
            local_rollout_forward_batch_size=work.batch,
            response_length=work.response,
            stop_token=None,
            temperature=1.0,
            kl_coef=ppo_work.KL,
            vf_coef=ppo_work.VALUE,
        )
        data = Dataset.from_dict({"input_ids": rows})
        trainer = PPOTrainer(
            config,
            tokenizer,
            policy,
            None,
            reward_model.eval().requires_grad_(False),
            data,
            value,
            eval_dataset=data,
            peft_config=lora,
            callbacks=[Marks(meter)],
        )
        trainer.train()
    meter.report(versions=ppo_work.versions("trl", "torch", "transformers", "peft", "numpy"))


def _targets(work: Work) -> str | list[str]:
    return work.targets if isinstance(work.targets, str) else list(work.targets)


if __name__ == "__main__":
    sys.exit(main())
