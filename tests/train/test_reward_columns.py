"""Columns of a data set on their way to reward functions and samples."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stackllama_engine.contract.errors import DataError
from stackllama_engine.contract.recipe import PPORecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train.ppo.prompts import Prompt, load_prompts

ROWS: list[dict[str, Any]] = [
    {"question": "1 + 1?", "answer": "#### 2", "level": 1, "steps": ["1 + 1 = 2"]},
    {"question": "2 + 2?", "answer": "#### 4", "level": None, "steps": []},
    {"question": "3 + 3?", "answer": "#### 6", "hint": "six", "steps": []},
]


def prompts_of(tmp_path: Path, *keys: str, rows: Any = ROWS) -> list[Prompt]:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe(
        Stage.PPO, None, ["model_name_or_path=demo", f"dataset_name={file}", "reward_funcs=a:b", *keys]
    )
    assert isinstance(recipe, PPORecipe)
    encoder: Any = SimpleNamespace(prompt=lambda question, messages: [1, 2])
    return load_prompts(recipe, "all", None, encoder, SimpleNamespace(health=print))  # type: ignore[arg-type]


def test_every_scalar_column_travels_under_the_same_names_in_every_row(tmp_path: Path) -> None:
    assert [prompt.columns for prompt in prompts_of(tmp_path)] == [
        {"answer": "#### 2", "level": 1, "hint": None},
        {"answer": "#### 4", "level": None, "hint": None},
        {"answer": "#### 6", "level": None, "hint": "six"},
    ]


def test_named_columns_travel_as_they_are_and_no_others(tmp_path: Path) -> None:
    first, *_ = prompts_of(tmp_path, "reward_columns=[steps, answer]")
    assert first.columns == {"steps": ["1 + 1 = 2"], "answer": "#### 2"}
    assert [prompt.columns for prompt in prompts_of(tmp_path, "reward_columns=[]")] == [{}, {}, {}]


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column solution; its columns are question, answer"):
        prompts_of(tmp_path, "reward_columns=[solution]")


def test_the_answers_of_pairs_stay_where_they_are(tmp_path: Path) -> None:
    rows = [{"question": "q", "response_j": "good", "response_k": "bad", "votes": 3}]
    assert prompts_of(tmp_path, rows=rows)[0].columns == {"votes": 3}
