"""The work of ``ppo_work.py`` by this project's PPO stage, in a process of its own; one JSON line at the end.

What runs is the stage itself, step by step: reward as an adapter on the shared base, responses judged through text.

    python benchmarks/ppo_ours.py FOLDER BATCHES --prepare     # writes what all sides read
    python benchmarks/ppo_ours.py FOLDER BATCHES [key=value …]
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ppo_work as work

work.quiet()
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

import torch  # noqa: E402
from peft import get_peft_model  # noqa: E402
from transformers import AutoModelForSequenceClassification, set_seed  # noqa: E402

from stackllama_engine.contract.recipe import PPORecipe, RewardRecipe  # noqa: E402
from stackllama_engine.contract.recipe_io import load_recipe  # noqa: E402
from stackllama_engine.contract.run_dir import RunDir  # noqa: E402
from stackllama_engine.contract.stages import Stage  # noqa: E402
from stackllama_engine.train import models  # noqa: E402
from stackllama_engine.train.ppo.fault_tolerance import NO_END  # noqa: E402
from stackllama_engine.train.ppo.sampling import Noise, draw_noise  # noqa: E402
from stackllama_engine.train.ppo.trainer import PPO  # noqa: E402
from stackllama_engine.train.reporting import Reporter  # noqa: E402
from stackllama_engine.train.restart import Restarts  # noqa: E402
from stackllama_engine.train.session import Session  # noqa: E402
from stackllama_engine.train.signals import Signals  # noqa: E402


class Endless(PPO):
    """The stage, with responses that no token ends."""

    def __init__(self, recipe: PPORecipe, session: Session) -> None:
        super().__init__(recipe, session)
        self.eos = NO_END

    def _noise(self, step: int, indices: Sequence[int]) -> list[Noise]:
        lengths = (work.RESPONSE, work.RESPONSE + 1)
        return [draw_noise(self.recipe.seed, step, index, lengths) for index in indices]


def prepare(folder: Path, batches: int) -> None:
    """What all sides read, and the reward model as an adapter, which only this side can use."""
    work.prepare(folder, batches)
    keys = (f"model_name_or_path={folder / 'base'}", "load_in_8bit=false", "lora_r=16")
    recipe = load_recipe(Stage.REWARD, None, keys)
    assert isinstance(recipe, RewardRecipe)
    judge = AutoModelForSequenceClassification.from_pretrained(folder / "reward")
    adapter = get_peft_model(judge, models.lora_config(recipe, "SEQ_CLS"))
    models.save_adapter(adapter, models.load_tokenizer(str(folder / "base")), folder / "adapter", recipe)


def recipe_of(folder: Path, batches: int, more: Sequence[str]) -> PPORecipe:
    """The same work in our keys."""
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
        "lora_r": work.RANK,
        "lora_alpha": work.ALPHA,
        "per_device_train_batch_size": work.MINI,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": work.BATCH // work.MINI,
        "num_ppo_epochs": work.EPOCHS,
        "learning_rate": work.LEARNING_RATE,
        "kl_coef": work.KL,
        "vf_coef": work.VALUE,
        "early_stopping": False,
        "max_steps": batches + 1,
        "local_rollout_forward_batch_size": work.BATCH,
        "response_length": work.RESPONSE,
    }
    written = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()]
    recipe = load_recipe(Stage.PPO, None, [*written, *more])
    assert isinstance(recipe, PPORecipe)
    return recipe


def main(folder: Path, batches: int, more: Sequence[str]) -> None:
    """Run and report."""
    torch.set_num_threads(work.THREADS)
    meter = work.Meter()
    models.quiet_libraries()
    recipe = recipe_of(folder, batches, more)
    with tempfile.TemporaryDirectory() as scratch:
        run = RunDir(Path(scratch))
        run.attempt_dir(1).mkdir(parents=True)
        run.control.mkdir()
        set_seed(recipe.seed)
        reporter = Reporter(run, 1, is_main=True)
        signals = Signals()
        stage = Endless(recipe, Session(run, reporter, signals, Restarts(run, 1, signals), use_cpu=True))
        metrics: list[dict[str, float]] = []
        meter.run(lambda number: metrics.append(stage.step(number)[0]), batches)
    assert all(row["val/num_tokens"] == work.BATCH * work.RESPONSE for row in metrics)
    assert all(row["val/ratio_first"] == 1.0 for row in metrics)
    phases = {name: [row[f"time/{name}"] for row in metrics[1:]] for name in ("rollout", "score", "update")}
    meter.report(phases=phases, versions=work.versions("torch", "transformers", "peft", "numpy"))


if __name__ == "__main__":
    if "--prepare" in sys.argv:
        prepare(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
