"""The work of ``ppo_work.py`` by trl 0.11.4's ``PPOTrainer``, in its own environment; one JSON line at the end.

The policy has its value head and, adapter off, is the reference; the reward model is a model of its own.
"""

import json
import sys
import warnings
from pathlib import Path

import ppo_work as work

work.quiet()
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast  # noqa: E402
from trl import (  # noqa: E402
    AutoModelForCausalLMWithValueHead,  # pyright: ignore[reportAttributeAccessIssue]
    PPOConfig,  # pyright: ignore[reportAttributeAccessIssue]
    PPOTrainer,  # pyright: ignore[reportAttributeAccessIssue]
)


def main(folder: Path, batches: int) -> None:
    """Run and report."""
    torch.set_num_threads(work.THREADS)
    meter = work.Meter()
    # not AutoTokenizer: transformers 5 wrote a class name that this one does not know
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "base", padding_side="left")
    lora = LoraConfig(r=work.RANK, lora_alpha=work.ALPHA, target_modules=work.TARGETS, task_type="CAUSAL_LM")
    policy = AutoModelForCausalLMWithValueHead.from_pretrained(str(folder / "base"), peft_config=lora)
    judge = AutoModelForSequenceClassification.from_pretrained(folder / "reward").eval().requires_grad_(False)
    config = PPOConfig(
        batch_size=work.BATCH,
        mini_batch_size=work.MINI,
        gradient_accumulation_steps=1,
        ppo_epochs=work.EPOCHS,
        learning_rate=work.LEARNING_RATE,
        init_kl_coef=work.KL,
        vf_coef=work.VALUE,
        adap_kl_ctrl=True,
        early_stopping=False,
        ratio_threshold=1e9,
        accelerator_kwargs={"cpu": True},
    )
    trainer = PPOTrainer(config, policy, tokenizer=tokenizer)
    prompts = [torch.tensor(row) for row in json.loads((folder / "prompts.json").read_text())]
    settings = {
        "max_new_tokens": work.RESPONSE,
        "min_new_tokens": work.RESPONSE,
        "do_sample": True,
        "top_k": 0,
        "top_p": 1.0,
        "pad_token_id": work.PAD,
        "eos_token_id": -1,
    }

    def step(number: int) -> None:
        queries = prompts[number * work.BATCH : (number + 1) * work.BATCH]
        responses = trainer.generate(
            queries, batch_size=work.BATCH, return_prompt=False, remove_padding=False, **settings
        )
        assert all(len(response) == work.RESPONSE for response in responses)
        texts = torch.stack([torch.cat(pair) for pair in zip(queries, responses, strict=True)])
        with torch.no_grad():
            scores = judge(input_ids=texts, attention_mask=torch.ones_like(texts)).logits.squeeze(-1)
        trainer.step(queries, responses, list(scores))

    meter.run(step, batches)
    meter.report(versions=work.versions("trl", "torch", "transformers", "peft", "numpy"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
