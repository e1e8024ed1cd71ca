"""Other names of recipe keys, by which the form's filter finds them: people's short ones and other trainers'."""

import functools

from stackllama_engine.contract.foreign_keys import ACCEPTED, AXOLOTL, LLAMA_FACTORY

SHORT = {
    "adam_beta1": "betas",
    "adam_beta2": "betas",
    "advantage": "rloo grpo gae group reinforce dr_grpo dapo estimator",
    "adap_kl_ctrl": "adaptive kl controller",
    "attn_implementation": "attention flash fa2 fa3 sdpa eager",
    "base_precision": "quantization quantisation load_in_8bit load_in_4bit qlora 8bit 4bit bnb",
    "cliprange": "clip range epsilon eps_clip",
    "dataset_name": "data set",
    "dtype": "precision",
    "epsilon_high": "clip higher clip range dapo",
    "ent_coef": "entropy bonus coefficient",
    "gamma": "discount factor",
    "gradient_accumulation_steps": "grad accum accumulate ga batch size",
    "gradient_checkpointing": "activation checkpointing recompute",
    "kl_coef": "beta kl coefficient penalty",
    "lam": "lambda gae",
    "learning_rate": "lr",
    "lora_r": "rank",
    "lora_target_modules": "lora targets",
    "lr_scheduler_type": "lr schedule decay cosine",
    "max_grad_norm": "gradient clipping clip norm",
    "max_length": "context sequence length seq_len cutoff",
    "max_tokens_per_micro_batch": "token budget",
    "max_prompt_length": "context sequence length",
    "max_steps": "steps iterations",
    "min_lr_rate": "lr floor",
    "model_name_or_path": "base model",
    "num_generations": "group size n samples per prompt",
    "num_mini_batches": "minibatches batch size",
    "num_processes": "gpus world size ranks ddp",
    "num_train_epochs": "epochs",
    "optim": "adam adamw optimiser",
    "per_device_eval_batch_size": "bs eval batch size",
    "per_device_train_batch_size": "bs micro batch size",
    "report_to": "wandb tensorboard trackio mlflow logger",
    "response_length": "max new tokens completion length",
    "save_steps": "checkpoint interval every",
    "seed": "random",
    "target": "target kl",
    "temperature": "sampling",
    "value_learning_rate": "lr critic",
    "vf_coef": "value loss coefficient critic",
    "warmup_steps": "warmup_ratio lr warmup",
    "weight_decay": "wd l2",
}
"""Recipe key → words, in lower case."""


@functools.cache
def aliases(name: str) -> str:
    """Return the other names of a key, in one lower-case text; empty where it has none."""
    foreign = [key for table in (LLAMA_FACTORY, AXOLOTL) for key, one in table.items() if one.ours == name]
    accepted = [key for key, ours in ACCEPTED.items() if ours == name]
    return " ".join([SHORT.get(name, ""), *accepted, *foreign]).strip().lower()
