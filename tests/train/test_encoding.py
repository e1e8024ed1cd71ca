"""From text to tokens, and where rows come from."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from stackllama_engine.contract.errors import DataError
from stackllama_engine.contract.prompt_format import PromptFormat
from stackllama_engine.contract.recipe import SFTRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train import encoding, models
from stackllama_engine.train.encoding import Encoder

from .toy import SFT


def recipe_of(*values: str) -> SFTRecipe:
    recipe = load_recipe(Stage.SFT, None, (*SFT, *values))
    assert isinstance(recipe, SFTRecipe)
    return recipe


def test_prompt_and_answer_join_without_a_seam(base: Path) -> None:
    tokenizer = models.load_tokenizer(str(base))
    encoder = Encoder(tokenizer, PromptFormat())
    whole = encoder.text_ids("How do I peel garlic?", "Use a knife.")
    assert whole == encoder.prompt("How do I peel garlic?") + encoder.answer("How do I peel garlic?", "Use a knife.")
    assert whole[-1] == models.eos_id(tokenizer)
    assert whole.count(models.eos_id(tokenizer)) == 1
    assert tokenizer.decode(whole[:-1]) == "Question: How do I peel garlic?\n\nAnswer: Use a knife."


def test_a_special_token_spelled_out_in_a_text_stays_text(base: Path) -> None:
    tokenizer = models.load_tokenizer(str(base))
    ids = Encoder(tokenizer, PromptFormat()).text_ids("Is <s>this</s> struck out?", "No, </s> is <pad>.")
    assert ids.count(models.eos_id(tokenizer)) == 1
    assert ids.count(models.pad_id(tokenizer)) == 0
    assert str(tokenizer.decode(ids[:-1])).endswith("No, </s> is <pad>.")


def test_a_stream_needs_to_know_when_to_end(base: Path, tmp_path: Path) -> None:
    keys = [value for value in SFT if not value.startswith(("max_train_samples", "max_steps"))]
    recipe = load_recipe(
        Stage.SFT, None, (*keys, f"model_name_or_path={base}", "dataset_name=someone/pairs", "max_train_samples=null")
    )
    assert isinstance(recipe, SFTRecipe)
    with pytest.raises(DataError, match="max_steps"):
        encoding.training_rows(recipe, RunDir(tmp_path), ("question", "response_j"), encode)


def test_missing_columns_are_our_own_error(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"title": "why", "body": "because"}\n')
    recipe = recipe_of(f"model_name_or_path={base}", f"dataset_name={file}", "dataset_train_split=all")
    with pytest.raises(DataError, match="question"):
        encoding.training_rows(recipe, RunDir(tmp_path), ("question", "response_j"), encode)


def test_an_unfinished_answer_has_no_end_token(base: Path) -> None:
    tokenizer = models.load_tokenizer(str(base))
    assert models.eos_id(tokenizer) not in Encoder(tokenizer, PromptFormat()).text_ids("Why?", "Because", ended=False)


def test_the_pad_token_is_never_the_end_token_where_that_can_be_helped(base: Path, tmp_path: Path) -> None:
    tokenizer = models.load_tokenizer(str(base))
    tokenizer.pad_token, tokenizer.unk_token = tokenizer.eos_token, "<s>"
    tokenizer.save_pretrained(tmp_path)
    reloaded = models.load_tokenizer(str(tmp_path))
    assert models.pad_id(reloaded) != models.eos_id(reloaded)


def encode(row: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": [len(row["question"]), len(row["response_j"])]}


def test_a_hub_set_is_streamed(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def endless(name: str, split: str, **options: Any) -> Iterator[dict[str, str]]:
        for index in range(10**9):
            taken.append(index)
            yield {"question": "q" * index, "response_j": "a"}

    monkeypatch.setattr(encoding, "open_rows", endless)
    values = (f"model_name_or_path={base}", "dataset_name=someone/pairs", "max_train_samples=null")
    unlimited = [value for value in (*SFT, *values) if not value.startswith("max_train_samples=6")]
    recipe = load_recipe(Stage.SFT, None, unlimited)
    assert isinstance(recipe, SFTRecipe)
    streamed = encoding.training_rows(recipe, RunDir(tmp_path), ("question", "response_j"), encode)
    assert isinstance(streamed, IterableDataset)
    lengths = [row["input_ids"][0] for row in streamed.take(3)]
    assert len(set(lengths)) == 3
    assert lengths != [0, 1, 2]  # shuffled
    assert len(taken) <= encoding.SHUFFLE_BUFFER + 10


def test_a_changed_file_is_never_served_from_a_cache(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    values = (f"model_name_or_path={base}", f"dataset_name={file}", "dataset_train_split=all", "max_train_samples=9")
    found: list[int] = []
    for answer in ("short", "much longer"):
        file.write_text(f'{{"question": "why", "response_j": "{answer}"}}\n')
        loaded = encoding.training_rows(recipe_of(*values), RunDir(tmp_path), ("question", "response_j"), encode)
        assert isinstance(loaded, Dataset)
        found += [row["input_ids"][1] for row in loaded]  # type: ignore[index]
    assert found == [5, 11]


def test_conversations_and_named_columns_reach_the_encoding(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    file.write_text(f'{{"dialogue": {json.dumps(turns)}, "level": 3}}\n')
    recipe = recipe_of(
        f"model_name_or_path={base}",
        f"dataset_name={file}",
        "dataset_train_split=all",
        "dataset_columns.messages=dialogue",
    )
    seen: list[dict[str, Any]] = []

    def note(row: dict[str, Any]) -> dict[str, Any]:
        seen.append(row)
        return {"length": len(row["response_j"])}

    rows = encoding.training_rows(recipe, RunDir(tmp_path), ("question", "response_j"), note)
    assert isinstance(rows, Dataset) and rows.column_names == ["length"]
    assert seen == [{"question": "Hi.", "messages": turns[:1], "response_j": "Hello."}]
    assert list(encoding.source_rows(recipe, "all", ("question",), None, ["level"])) == [
        {"question": "Hi.", "messages": turns[:1], "level": 3}
    ]
