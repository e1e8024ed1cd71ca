"""Modules that get an adapter, as PEFT resolves a recipe's targets on real classes."""

from typing import Any

import pytest
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    FalconH1Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
)

from stackllama_engine.contract.recipe import RewardRecipe, SFTRecipe
from stackllama_engine.contract.recipe_io import dump_recipe, load_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import models

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}
LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def adapted(model: Any, stage: Stage, *keys: str) -> set[str]:
    """Return the last names of the modules that get an adapter."""
    recipe = load_recipe(stage, None, ("model_name_or_path=x", *keys))
    assert isinstance(recipe, SFTRecipe | RewardRecipe)
    task = "SEQ_CLS" if stage is Stage.REWARD else "CAUSAL_LM"
    peft_model = get_peft_model(model, models.lora_config(recipe, task, model.config.model_type))
    names = (name for name, _ in peft_model.named_parameters() if "lora_A" in name)
    return {name.partition(".lora_A")[0].rpartition(".")[2] for name in names}


def test_the_default_adapts_every_matrix_of_the_layers_and_no_head() -> None:
    assert adapted(AutoModelForCausalLM.from_config(LlamaConfig(**SIZES)), Stage.SFT) == LLAMA


@pytest.mark.parametrize(
    ("config", "matrices"),
    [
        (LlamaConfig(**SIZES), LLAMA),
        (GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, pad_token_id=0), {"c_attn", "c_proj", "c_fc"}),
        (GPTNeoXConfig(**SIZES), {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
    ],
)
def test_the_score_head_of_a_reward_model_is_trained_itself(config: PreTrainedConfig, matrices: set[str]) -> None:
    model = AutoModelForSequenceClassification.from_config(config)
    assert adapted(model, Stage.REWARD) == matrices
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad and "score" in name]
    assert trained == ["score.modules_to_save.default.weight"]


def test_null_is_pefts_default_as_in_recipes_from_before_it_changed() -> None:
    recipe = load_recipe(Stage.SFT, None, ("model_name_or_path=x", "lora_target_modules=null"))
    assert isinstance(recipe, SFTRecipe)
    assert recipe.lora_target_modules is None and "lora_target_modules: null" in dump_recipe(recipe)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))
    assert adapted(model, Stage.SFT, "lora_target_modules=null") == {"q_proj", "v_proj"}


def test_what_fused_kernels_of_mamba_layers_read_is_left_out() -> None:
    sizes: dict[str, Any] = SIZES | {"num_key_value_heads": 1, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}
    model = AutoModelForCausalLM.from_config(FalconH1Config(**sizes, mamba_d_state=8))
    assert adapted(model, Stage.SFT) == LLAMA | {"in_proj"}
