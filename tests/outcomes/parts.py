"""The common start of both sides: the demo's base after SFT, its reward model, and the settings of PPO.

``demo/sft`` and ``demo/reward`` hold the adapters of one run of the demo (seed 0), rounded to bfloat16; everything else
is the demo's own. A recording holds the hash of what it was made from (:func:`fingerprint`).
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from stackllama_engine.contract.recipe import PipelineRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.data import demo_data
from stackllama_engine.train import demo_base, models

HERE = Path(__file__).resolve().parent
ADAPTERS = HERE / "demo"
DEMO_BASE = Path(demo_base.__file__).parents[1] / "demo_base"
_FILES = ("adapter_config.json", "adapter_model.safetensors")


class Parts(NamedTuple):
    """Directories of whole models and adapters, as either side reads them."""

    base: Path
    """The base after SFT, merged, float32."""
    reward: Path
    """The reward model's adapter and head, on that base."""
    classifier: Path
    """The reward model as a whole sequence classifier."""


SETTINGS = (
    "lora_r",
    "lora_alpha",
    "lora_target_modules",
    "learning_rate",
    "lr_scheduler_type",
    "weight_decay",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_mini_batches",
    "num_ppo_epochs",
    "response_length",
    "missing_eos_penalty",
    "kl_coef",
    "adap_kl_ctrl",
    "vf_coef",
    "cliprange",
    "cliprange_value",
    "gamma",
    "lam",
    "temperature",
)
"""Keys of PPO that both sides share."""


def settings() -> dict[str, Any]:
    """Return PPO's keys in the demo's recipe, every default written out."""
    recipe = load_recipe(Stage.PIPELINE, DEMO_BASE / "demo.yaml")
    assert isinstance(recipe, PipelineRecipe)
    return recipe.ppo


def fingerprint() -> str:
    """Return the SHA-256 of data, base, adapters and the settings of both sides."""
    digest = hashlib.sha256()
    for split in ("rl", "evaluation"):
        digest.update(json.dumps(sorted(demo_data.questions(split))).encode())
    digest.update(json.dumps(list(demo_data.generate("reward"))[:200]).encode())
    digest.update((DEMO_BASE / "model.safetensors").read_bytes())
    keys = settings()
    digest.update(json.dumps({key: keys[key] for key in SETTINGS}).encode())
    for name in ("sft", "reward"):
        digest.update((ADAPTERS / name / "adapter_model.safetensors").read_bytes())
    return digest.hexdigest()


def keep(run: Path, name: str) -> None:
    """Keep a run's adapter, rounded to bfloat16: half the bytes, and still exactly the same on every machine."""
    target = ADAPTERS / name
    target.mkdir(parents=True, exist_ok=True)
    config = json.loads((run / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = None
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    save_file({key: value.bfloat16() for key, value in weights.items()}, target / "adapter_model.safetensors")


def make(folder: Path) -> Parts:
    """Build everything under a folder."""
    parts = Parts(folder / "base", folder / "reward", folder / "classifier")
    tokenizer = models.load_tokenizer(str(DEMO_BASE))
    base = AutoModelForCausalLM.from_pretrained(DEMO_BASE, dtype=torch.float32)
    PeftModel.from_pretrained(base, _float32(folder, "sft")).merge_and_unload().save_pretrained(parts.base)
    tokenizer.save_pretrained(parts.base)
    shutil.copytree(_float32(folder, "reward"), parts.reward)
    identity = models.base_identity(str(parts.base), None)
    (parts.reward / models.BASE_FILE).write_text(json.dumps(identity), encoding="utf-8")
    reward_model = AutoModelForSequenceClassification.from_pretrained(parts.base, dtype=torch.float32, num_labels=1)
    reward_model.config.pad_token_id = tokenizer.pad_token_id
    PeftModel.from_pretrained(reward_model, parts.reward).merge_and_unload().save_pretrained(parts.classifier)
    tokenizer.save_pretrained(parts.classifier)
    return parts


def _float32(folder: Path, name: str) -> Path:
    """Copy a kept adapter, converted back to float32."""
    target = folder / f"{name}-float32"
    target.mkdir(parents=True)
    shutil.copy(ADAPTERS / name / _FILES[0], target)
    weights = load_file(ADAPTERS / name / _FILES[1])
    save_file({key: value.float() for key, value in weights.items()}, target / _FILES[1])
    return target
