"""Reward models from elsewhere at launch: what their files say is compared with the recipe."""

import json
from pathlib import Path
from typing import Any

import pytest

from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.prompt_format import PromptFormat, write_prompt_format
from stackllama_engine.contract.recipe import PPORecipe
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.reward_model_check import check_reward_model


def recipe(model: Path, **keys: Any) -> PPORecipe:
    made = build_recipe(Stage.PPO, {"model_name_or_path": "gpt2", "reward_model_path": str(model)} | keys)
    assert isinstance(made, PPORecipe)
    return made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "BAD", "1": "FAIR", "2": "GOOD"}}))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    return tmp_path


def test_one_of_several_labels_has_to_be_chosen(model: Path) -> None:
    with pytest.raises(UsageError, match=r"returns 3 scores per text \(BAD, FAIR, GOOD\), but a reward is one number"):
        check_reward_model(recipe(model), None)
    with pytest.raises(UsageError, match=r"`reward_model_label: 3`: .* choose one from 0 to 2"):
        check_reward_model(recipe(model, reward_model_label=3), None)
    check_reward_model(recipe(model, reward_model_label=2), None)
    (model / "config.json").write_text("{}")
    check_reward_model(recipe(model, reward_model_label=7), None)


def test_a_chat_needs_a_template_unless_the_model_was_trained_here(model: Path) -> None:
    chosen = recipe(model, reward_model_label=0)
    with pytest.raises(UsageError, match="its tokenizer has no chat template, so nothing says how it reads"):
        check_reward_model(chosen, "chat")
    check_reward_model(chosen, "question_answer")
    write_prompt_format(model, PromptFormat(kind="chat", chat_template="x"))
    check_reward_model(chosen, "chat")
    check_reward_model(recipe(model / "nowhere"), "chat")
