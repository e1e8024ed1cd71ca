"""A toy base, and stages run on it through the real command."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stackllama_engine.contract.prompt_format import PromptFormat
from stackllama_engine.contract.recipe import PPORecipe, RewardRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage
from stackllama_engine.data import demo_data
from stackllama_engine.launch.launcher import launch, plan
from stackllama_engine.launch.reconcile import reconcile
from stackllama_engine.train import models as train_models
from stackllama_engine.train.encoding import Encoder
from stackllama_engine.train.ppo.rewards import ResponseText

COMMON = (
    "use_cpu=true",
    "dataset_name=demo",
    "load_in_8bit=false",
    "lora_target_modules=all-linear",
    "learning_rate=1e-3",
    "max_train_samples=64",
    "max_eval_samples=8",
    "logging_steps=1",
    "save_minutes=0",  # on a slow machine a test may take minutes, and counts its checkpoints
)
SFT = (*COMMON, "warmup_steps=0", "max_steps=6", "max_length=64", "eval_steps=0", "save_steps=3")
REWARD = (*COMMON, "dtype=float32", "max_steps=6", "save_steps=3")
PPO = (
    *COMMON,
    "max_steps=4",
    "save_steps=2",
    "eval_steps=1",
    "random_length_limits=[4, 8]",
    "early_stopping=false",
    "per_device_train_batch_size=2",
    "gradient_accumulation_steps=2",
    "num_mini_batches=1",
    "local_rollout_forward_batch_size=8",
)


def make_base(path: Path, seed: int = 0) -> Path:
    """Save a random Llama of 2 layers with a byte-level tokenizer that knows the demo's words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    rows = itertools.islice(demo_data.generate("finetune"), 100)
    tokenizer.train_from_iterator((PromptFormat().render(row["question"], row["response_j"]) for row in rows), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    fast.save_pretrained(path)
    return path


def make_reward_model(base: Path, path: Path, seed: int = 1) -> Path:
    """Save a reward model's adapter and head on a base, drawn at random: it gives scores, and nobody trained it."""
    recipe = load_recipe(Stage.REWARD, None, (f"model_name_or_path={base}", *REWARD))
    assert isinstance(recipe, RewardRecipe)
    torch.manual_seed(seed)
    tokenizer = train_models.load_tokenizer(str(base))
    scores = train_models.load_reward_base(recipe, train_models.pad_id(tokenizer), torch.device("cpu"))
    model = train_models.add_lora(scores, recipe, "SEQ_CLS")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    train_models.save_adapter(model, tokenizer, path, recipe, PromptFormat())
    return path


def ppo_recipe(base: Path, *more: str) -> PPORecipe:
    """Make the toy's PPO recipe on a base, for tests in the process; it names a reward model that nobody loads."""
    recipe = load_recipe(Stage.PPO, None, (f"model_name_or_path={base}", "reward_model_path=unused", *PPO, *more))
    assert isinstance(recipe, PPORecipe)
    return recipe


def run_stage(home: Home, stage: Stage, *overrides: str, name: str | None = None) -> RunDir:
    """Launch a stage for real and wait for its end; fails with the log's tail when it did not finish."""
    # tests train and evaluate on the same few rows
    run = launch(plan(home, load_recipe(stage, None, overrides), name, allow=["eval-prompts"]))
    state = wait_for(run, lambda state: state.has_ended)
    log = (run.attempt_dir(1) / "log.txt").read_text(errors="replace")[-3000:]
    assert state.phase == "finished", f"{state.cause}\n{log}"
    return run


def wait_for(run: RunDir, condition: Callable[[State], bool], patience: float = 300.0) -> State:
    """Wait for the first state that meets the condition."""
    deadline = time.monotonic() + patience
    while not condition(state := reconcile(run)):
        assert time.monotonic() < deadline, f"{run.id} is still {state.phase}"
        time.sleep(0.1)
    return state


def text_ids(encoder: Encoder, response: ResponseText) -> list[int]:
    """Encode prompt and response as a reward model reads them."""
    return encoder.text_ids(response.question, response.text, ended=response.ended)
