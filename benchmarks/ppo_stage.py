"""This project's PPO stage on the work of ``ppo_work.py``, in the process of a benchmark.

Import it after the environment is set (``ppo_work.quiet``): it imports torch.
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ppo_work
from ppo_work import Work

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

from peft import get_peft_model
from transformers import AutoModelForSequenceClassification, set_seed

from stackllama_engine.contract.history import History, read_history
from stackllama_engine.contract.prompt_format import PromptFormat
from stackllama_engine.contract.recipe import PPORecipe, RewardRecipe, TrainRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import models
from stackllama_engine.train.ppo.fault_tolerance import NO_END
from stackllama_engine.train.ppo.sampling import Noise, draw_noise
from stackllama_engine.train.ppo.trainer import PPO
from stackllama_engine.train.reporting import Reporter
from stackllama_engine.train.restart import Restarts
from stackllama_engine.train.session import Session
from stackllama_engine.train.signals import Signals


class Endless(PPO):
    """The stage, with responses that no token ends."""

    def __init__(self, recipe: PPORecipe, session: Session, response: int) -> None:
        super().__init__(recipe, session)
        self.encoder.stop_ids = NO_END
        self.response = response

    def _noise(self, step: int, indices: Sequence[int]) -> list[Noise]:
        lengths = (self.response, self.response + 1)
        return [draw_noise(self.recipe.seed, step, index, lengths) for index in indices]


def write_reward_adapter(folder: Path, work: Work, *, device: str = "cpu", dtype: str = "float32") -> None:
    """Write a new reward model as an adapter on the base, ``adapter/``, which only this project can use.

    It is on ``reward/``, where that was written, so that its score head is the one of all sides.
    """
    source = folder / "reward" if (folder / "reward").exists() else folder / "base"
    keys = (f"model_name_or_path={folder / 'base'}", "load_in_8bit=false", "lora_r=16", _targets(work))
    recipe = load_recipe(Stage.REWARD, None, keys)
    assert isinstance(recipe, RewardRecipe)
    reward_model = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=1, dtype=dtype, device_map=device
    )
    adapter = get_peft_model(reward_model, models.lora_config(recipe, "SEQ_CLS", reward_model.config.model_type))
    models.save_adapter(
        adapter, models.load_tokenizer(str(folder / "base")), folder / "adapter", recipe, PromptFormat()
    )


def recipe_of(folder: Path, batches: int, work: Work, more: Sequence[str]) -> PPORecipe:
    """Return the same work in our keys, on a CPU in float32; ``more`` keys override them."""
    micro = work.micro or work.mini
    values = {
        "model_name_or_path": folder / "base",
        "reward_model_path": folder / "adapter",
        "use_cpu": True,
        "dataset_name": folder / "questions.jsonl",
        "dataset_train_split": "all",
        "dataset_test_split": "all",
        "max_eval_samples": 1,
        "load_in_8bit": False,
        "dtype": "float32",
        "lora_r": ppo_work.RANK,
        "lora_alpha": ppo_work.ALPHA,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": work.mini // micro,
        "num_mini_batches": work.batch // work.mini,
        "num_ppo_epochs": work.epochs,
        "learning_rate": ppo_work.LEARNING_RATE,
        "kl_coef": ppo_work.KL,
        "vf_coef": ppo_work.VALUE,
        "early_stopping": False,
        "max_steps": batches + 1,
        "local_rollout_forward_batch_size": work.batch,
        "response_length": work.response,
    }
    words = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()]
    recipe = load_recipe(Stage.PPO, None, [*words, _targets(work), *more])
    assert isinstance(recipe, PPORecipe)
    return recipe


@contextmanager
def opened(recipe: PPORecipe, work: Work) -> Iterator[Endless]:
    """Load the stage in a run directory that is removed afterwards."""
    with session_of(recipe) as session:
        yield Endless(recipe, session, work.response)


@contextmanager
def session_of(recipe: TrainRecipe) -> Iterator[Session]:
    """Make a run directory that is removed afterwards, and this process's session in it.

    The first one decides the process's mixed precision, as `accelerate launch` does for a run.
    """
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if recipe.bf16 else "no"
    with tempfile.TemporaryDirectory() as scratch:
        run = RunDir(Path(scratch))
        run.attempt_dir(1).mkdir(parents=True)
        run.control.mkdir()
        set_seed(recipe.seed)
        reporter = Reporter(run, 1, is_main=True)
        signals = Signals()
        yield Session(run, reporter, signals, Restarts(run, 1, signals), use_cpu=recipe.use_cpu)


def _targets(work: Work) -> str:
    targets = work.targets if isinstance(work.targets, str) else f"[{', '.join(work.targets)}]"
    return f"lora_target_modules={targets}"


def history(stage: Endless) -> History:
    """Return what the stage has reported so far: memory per phase, notices."""
    return read_history([stage.session.run.attempt_dir(1) / "events.jsonl"])
