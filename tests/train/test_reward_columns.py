"""Columns of a data set on their way to reward functions and samples."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stackllama_engine.contract.errors import DataError
from stackllama_engine.contract.recipe import PPORecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train.ppo.prompts import Prompt, load_prompts

from .in_process import PPO, attempt

ROWS: list[dict[str, Any]] = [
    {"question": "1 + 1?", "answer": "#### 2", "level": 1, "steps": ["1 + 1 = 2"]},
    {"question": "2 + 2?", "answer": "#### 4", "level": None, "steps": []},
    {"question": "3 + 3?", "answer": "#### 6", "hint": "six", "steps": []},
]


def prompts_of(tmp_path: Path, *keys: str, rows: Any = ROWS, read: Any = None) -> list[Prompt]:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe(
        Stage.PPO, None, ["model_name_or_path=demo", f"dataset_name={file}", "reward_funcs=a:b", *keys]
    )
    assert isinstance(recipe, PPORecipe)
    encoder: Any = SimpleNamespace(prompt=lambda question, messages: [1, 2])
    return load_prompts(recipe, "all", None, encoder, SimpleNamespace(health=print), read)  # type: ignore[arg-type]


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


def test_prompts_are_apart_where_columns_differ_that_functions_read(tmp_path: Path) -> None:
    rows = [{"question": "Solve it.", "answer": str(index // 2), "id": index} for index in range(4)]
    for read, number in ((None, 4), ({"answer"}, 2), (set(), 1)):
        assert len(prompts_of(tmp_path, rows=rows, read=read)) == number


def test_a_named_column_is_none_where_a_row_lacks_it(tmp_path: Path) -> None:
    rows = [{"question": "a?"}, {"question": "b?", "answer": "2"}, {"question": "c?"}]
    columns = [prompt.columns for prompt in prompts_of(tmp_path, "reward_columns=[answer]", rows=rows)]
    assert columns == [{"answer": None}, {"answer": "2"}, {"answer": None}]


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column solution; its columns are question, answer, level, steps, hint"):
        prompts_of(tmp_path, "reward_columns=[solution]")


def test_a_prompt_column_of_another_name_travels_under_it(tmp_path: Path) -> None:
    rows = [{"problem": "1 + 1?", "answer": "2"}]
    assert prompts_of(tmp_path, "dataset_columns.prompt=problem", rows=rows)[0].columns == rows[0]


def test_the_answers_of_pairs_stay_where_they_are(tmp_path: Path) -> None:
    rows = [{"question": "q", "response_j": "good", "response_k": "bad", "votes": 3}]
    assert prompts_of(tmp_path, rows=rows)[0].columns == {"votes": 3}


def test_rows_of_one_prompt_are_kept_where_functions_read_other_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "Solve it.", "answer": number} for number in (1, 2, 2)]
    assert [prompt.columns["answer"] for prompt in prompts_of(tmp_path, rows=rows)] == [1, 2]
    assert capsys.readouterr().out == "1 rows of all dropped: prompt and columns of an earlier row\n"
    assert len(prompts_of(tmp_path, "reward_funcs=[]", "reward_model_path=m", rows=rows)) == 1
    assert capsys.readouterr().out == "2 rows of all dropped: prompt of an earlier row\n"


def test_rows_that_are_skipped_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": "q?"}, {"question": None}, {"question": " "}, {"question": None}]
    assert len(prompts_of(tmp_path, rows=rows)) == 1
    assert capsys.readouterr().out == "3 rows of all skipped: 2 × question is null, 1 × question is blank\n"


@pytest.mark.slow
def test_a_run_scores_against_a_column_and_records_it(base: Path, shared_home: Home, tmp_path: Path) -> None:
    """Through the stage, with a ready function that counts and one that only watches."""
    rows = [{"question": f"How many is {n} + 1?", "answer": f"So.\n#### {n + 1}"} for n in range(9)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ready = "stackllama_engine.rewards"
    keys = (
        f"dataset_name={tmp_path / 'sums.jsonl'}",
        "dataset_train_split=all",
        "dataset_test_split=all",
        "max_steps=1",
        f"reward_funcs=[{ready}:exact_number_strict, {ready}:target_length]",
        "reward_func_paths=[]",
        "reward_weights=[0, 2]",
        "reward_kwargs.words=3",
    )
    with attempt(shared_home, base, Stage.PPO, *PPO, *keys) as one:
        assert one.train()
    samples = [json.loads(line) for line in one.run.samples_file.read_text().splitlines()]
    assert samples
    for sample in samples:
        (question,) = (row for row in rows if row["question"] == sample["question"])
        assert sample["columns"] == {"answer": question["answer"]}
        assert sample["rewards"].keys() == {"exact_number_strict", "target_length"}
        assert sample["reward"] == pytest.approx(2 * sample["rewards"]["target_length"])
    assert set(one.metrics("reward/exact_number_strict")) == {1}
    assert set(one.metrics("reward/target_length_abstained").values()) == {0.0}
