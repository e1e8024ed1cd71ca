"""The work of ``ppo_work.py`` by this project's PPO stage, in a process of its own; one JSON line at the end.

What runs is the stage itself, step by step: reward as an adapter on the shared base, responses scored through text.

    python benchmarks/ppo_ours.py FOLDER BATCHES --prepare     # writes what all sides read
    python benchmarks/ppo_ours.py FOLDER BATCHES [key=value …]
    python benchmarks/ppo_ours.py --tiny                       # both with a tiny model, in a folder that is removed
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ppo_work
from ppo_work import FULL, TINY, Work

ppo_work.quiet()
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

import torch  # noqa: E402
from peft import get_peft_model  # noqa: E402
from transformers import AutoModelForSequenceClassification, set_seed  # noqa: E402

from stackllama_engine.contract.prompt_format import PromptFormat  # noqa: E402
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

    def __init__(self, recipe: PPORecipe, session: Session, response: int) -> None:
        super().__init__(recipe, session)
        self.encoder.stop_ids = NO_END
        self._response = response

    def _noise(self, step: int, indices: Sequence[int]) -> list[Noise]:
        lengths = (self._response, self._response + 1)
        return [draw_noise(self.recipe.seed, step, index, lengths) for index in indices]


def prepare(folder: Path, batches: int, work: Work) -> None:
    """Write what all sides read, and the reward model as an adapter, which only this side can use."""
    ppo_work.prepare(folder, batches, work)
    targets = "lora_target_modules=[q_proj, v_proj]"
    keys = (f"model_name_or_path={folder / 'base'}", "load_in_8bit=false", "lora_r=16", targets)
    recipe = load_recipe(Stage.REWARD, None, keys)
    assert isinstance(recipe, RewardRecipe)
    reward_model = AutoModelForSequenceClassification.from_pretrained(folder / "reward")
    adapter = get_peft_model(reward_model, models.lora_config(recipe, "SEQ_CLS", reward_model.config.model_type))
    models.save_adapter(
        adapter, models.load_tokenizer(str(folder / "base")), folder / "adapter", recipe, PromptFormat()
    )


def recipe_of(folder: Path, batches: int, work: Work, more: Sequence[str]) -> PPORecipe:
    """Return the same work in our keys."""
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
        "lora_target_modules": ppo_work.TARGETS,
        "per_device_train_batch_size": work.mini,
        "gradient_accumulation_steps": 1,
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
    recipe = load_recipe(Stage.PPO, None, [*words, *more])
    assert isinstance(recipe, PPORecipe)
    return recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare the work, or do and report it."""
    parser = ppo_work.parser("The work of ppo_work.py by this project's PPO stage.")
    parser.add_argument("more", nargs="*", metavar="key=value", help="recipe keys")
    parser.add_argument("--prepare", action="store_true", help="write what all sides read")
    options = parser.parse_args(arguments)
    work = TINY if options.tiny else FULL
    if options.folder is not None:
        if options.prepare:
            prepare(options.folder, options.batches, work)
        else:
            measure(options.folder, options.batches, work, options.more)
    elif options.tiny:
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), options.batches + 1, work)
            measure(Path(folder), options.batches, work, options.more)
    else:
        parser.error("name the folder")
    return 0


def measure(folder: Path, batches: int, work: Work, more: Sequence[str]) -> None:
    """Do the prepared work and report it."""
    torch.set_num_threads(ppo_work.THREADS)
    meter = ppo_work.Meter()
    models.quiet_libraries()
    recipe = recipe_of(folder, batches, work, more)
    with tempfile.TemporaryDirectory() as scratch:
        run = RunDir(Path(scratch))
        run.attempt_dir(1).mkdir(parents=True)
        run.control.mkdir()
        set_seed(recipe.seed)
        reporter = Reporter(run, 1, is_main=True)
        signals = Signals()
        session = Session(run, reporter, signals, Restarts(run, 1, signals), use_cpu=True)
        stage = Endless(recipe, session, work.response)
        metrics: list[dict[str, float]] = []
        meter.run(lambda number: metrics.append(stage.step(number)[0]), batches)
    assert all(row["val/num_tokens"] == work.batch * work.response for row in metrics)
    assert all(row["val/ratio_first"] == 1.0 for row in metrics)
    phases = {name: [row[f"time/{name}"] for row in metrics[1:]] for name in ("rollout", "score", "update")}
    meter.report(phases=phases, versions=ppo_work.versions("torch", "transformers", "peft", "numpy"))


if __name__ == "__main__":
    sys.exit(main())
