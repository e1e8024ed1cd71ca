"""The work of ``ppo_work.py`` by trl 0.11.4's ``PPOTrainer``, in its own environment; one JSON line at the end.

The policy has its value head and, adapter off, is the reference; the reward model is a model of its own.
"""

import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import ppo_work
from ppo_work import FULL, TINY, Work

ppo_work.quiet()
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast  # noqa: E402
from trl import (  # noqa: E402
    AutoModelForCausalLMWithValueHead,  # pyright: ignore[reportAttributeAccessIssue]
    PPOConfig,  # pyright: ignore[reportAttributeAccessIssue]
    PPOTrainer,  # pyright: ignore[reportAttributeAccessIssue]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the prepared work and report it."""
    parser = ppo_work.parser("The work of ppo_work.py by trl 0.11.4.")
    options = parser.parse_args(arguments)
    work = TINY if options.tiny else FULL
    if options.folder is not None:
        measure(options.folder, options.batches, work)
    elif options.tiny:
        with tempfile.TemporaryDirectory() as folder:
            ppo_work.prepare(Path(folder), options.batches + 1, work)
            measure(Path(folder), options.batches, work)
    else:
        parser.error("name the folder")
    return 0


def measure(folder: Path, batches: int, work: Work) -> None:
    """Do the prepared work and report it."""
    torch.set_num_threads(ppo_work.THREADS)
    meter = ppo_work.Meter()
    # not AutoTokenizer: transformers 5 wrote a class name that this one does not know
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "base", padding_side="left")
    lora = LoraConfig(
        r=ppo_work.RANK, lora_alpha=ppo_work.ALPHA, target_modules=list(work.targets), task_type="CAUSAL_LM"
    )
    policy = AutoModelForCausalLMWithValueHead.from_pretrained(str(folder / "base"), peft_config=lora)
    reward_model = AutoModelForSequenceClassification.from_pretrained(folder / "reward").eval().requires_grad_(False)
    config = PPOConfig(
        batch_size=work.batch,
        mini_batch_size=work.mini,
        gradient_accumulation_steps=1,
        ppo_epochs=work.epochs,
        learning_rate=ppo_work.LEARNING_RATE,
        init_kl_coef=ppo_work.KL,
        vf_coef=ppo_work.VALUE,
        adap_kl_ctrl=True,
        early_stopping=False,
        ratio_threshold=1e9,
        accelerator_kwargs={"cpu": True},
    )
    trainer = PPOTrainer(config, policy, tokenizer=tokenizer)
    prompts = [torch.tensor(row) for row in json.loads((folder / "prompts.json").read_text())]
    settings = {
        "max_new_tokens": work.response,
        "min_new_tokens": work.response,
        "do_sample": True,
        "top_k": 0,
        "top_p": 1.0,
        "pad_token_id": ppo_work.PAD,
        "eos_token_id": -1,
    }

    def step(number: int) -> None:
        queries = prompts[number * work.batch : (number + 1) * work.batch]
        responses = trainer.generate(
            queries, batch_size=work.batch, return_prompt=False, remove_padding=False, **settings
        )
        assert all(len(response) == work.response for response in responses)
        texts = torch.stack([torch.cat(pair) for pair in zip(queries, responses, strict=True)])
        with torch.no_grad():
            scores = reward_model(input_ids=texts, attention_mask=torch.ones_like(texts)).logits.squeeze(-1)
        trainer.step(queries, responses, list(scores))

    meter.run(step, batches)
    meter.report(versions=ppo_work.versions("trl", "torch", "transformers", "peft", "numpy"))


if __name__ == "__main__":
    sys.exit(main())
