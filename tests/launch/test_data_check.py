"""Local data that a stage could not read is refused at launch, and what it will not read is said there."""

import json
from pathlib import Path
from typing import Any

import pytest

from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.recipe_io import build_recipe
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import data_check
from stackllama_engine.launch.data_check import data_notices
from stackllama_engine.launch.inputs import resolve_inputs

KEYS: dict[Stage, dict[str, Any]] = {
    Stage.SFT: {"model_name_or_path": "gpt2"},
    Stage.REWARD: {"model_name_or_path": "gpt2"},
    Stage.PREFERENCE: {"model_name_or_path": "gpt2"},
    Stage.PPO: {"model_name_or_path": "gpt2", "reward_model_path": "owner/judge"},
    Stage.PIPELINE: {"model_name_or_path": "gpt2"},
}
TURNS = [{"role": "user", "content": "Why?"}]
PAIR = {"question": "q", "chosen": "a", "rejected": "b"}


def check(tmp_path: Path, stage: Stage, name: str) -> None:
    recipe = build_recipe(stage, KEYS[stage] | {"dataset_name": str(tmp_path / name)})
    resolve_inputs(Home(tmp_path / "home"), recipe)


@pytest.mark.parametrize(
    ("stage", "row", "message"),
    [
        (Stage.REWARD, {"better": "a", "worse": "b"}, "no column question .* its columns are better, worse"),
        (Stage.REWARD, {"question": "q", "answer": "a"}, "no column response_k"),
        (Stage.PIPELINE, {"question": "q", "answer": "a"}, "no column response_k"),
        (Stage.REWARD, {"messages": TURNS}, "no column response_k"),
        (
            Stage.REWARD,
            {"prompt": "q", "completion": "a", "label": True},
            "unpaired data .* a reward model needs pairs",
        ),
        (Stage.PPO, {"question": TURNS}, "line 1: column question holds list, not text. Messages are read from"),
        (Stage.SFT, {"question": "q", "response": 3}, "line 1: column response holds int, not text"),
        (Stage.SFT, None, "there is no row in split all"),
    ],
)
def test_rows_that_the_stage_cannot_read(
    tmp_path: Path, stage: Stage, row: dict[str, Any] | None, message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("" if row is None else json.dumps(row) + "\n")
    with pytest.raises(UsageError, match=message) as caught:
        check(tmp_path, stage, "rows.jsonl")
    assert f"`dataset_name={path}`" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("pairs.jsonl.xz", "unpack this one first"),
        ("pairs.txt", "convert its rows to JSON Lines"),
        ("dump.7z", "`7z x .*dump.7z Posts.xml`"),
        ("Posts.xml", "with `stackllama-console data prepare` first"),
        ("pairs", "convert its rows to JSON Lines"),
    ],
)
def test_files_of_another_format(tmp_path: Path, name: str, way_out: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(UsageError, match=way_out):
        check(tmp_path, Stage.SFT, name)


@pytest.mark.parametrize("name", ["missing.csv", "missing.jsonl.gz", "missing.json"])
def test_a_missing_file_is_no_hub_set(tmp_path: Path, name: str) -> None:
    recipe = build_recipe(Stage.SFT, KEYS[Stage.SFT] | {"dataset_name": name})
    with pytest.raises(UsageError, match="is not found here"):
        resolve_inputs(Home(tmp_path), recipe)


def test_folders_patterns_and_named_columns_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-0.jsonl").write_text(json.dumps({"title": "q", "answer": "a"}) + "\n")
    (tmp_path / "data" / "other.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}) + "\n")
    monkeypatch.chdir(tmp_path)
    values = KEYS[Stage.SFT] | {"dataset_train_split": "all", "dataset_columns": {"prompt": "title"}}
    recipe = build_recipe(Stage.SFT, values | {"dataset_name": "data/train-*.jsonl"})
    resolved, _ = resolve_inputs(Home(tmp_path / "home"), recipe)
    assert resolved.dataset_name == str(tmp_path / "data" / "train-*.jsonl")  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="no column title, which `dataset_columns` names for prompt"):
        resolve_inputs(Home(tmp_path / "home"), build_recipe(Stage.SFT, values | {"dataset_name": "data/other.jsonl"}))
    with pytest.raises(UsageError, match="no file has such a name"):
        resolve_inputs(Home(tmp_path / "home"), build_recipe(Stage.SFT, values | {"dataset_name": "data/none-*"}))


def test_an_unpacked_dump_is_told_to_prepare(tmp_path: Path) -> None:
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump" / "Posts.xml").touch()
    with pytest.raises(UsageError, match=r"run `stackllama-console data prepare .*/dump/Posts\.xml --out DIR`"):
        check(tmp_path, Stage.SFT, "dump")


def test_only_the_first_rows_are_read(tmp_path: Path) -> None:
    rows = json.dumps(PAIR) + "\n"
    (tmp_path / "rows.jsonl").write_text(rows * 50 + "not JSON\n")
    check(tmp_path, Stage.PIPELINE, "rows.jsonl")


def test_what_nobody_reads_is_said_once_for_all_stages(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(PAIR | {"input": "i", "note": "n"}) + "\n")
    for stage in (Stage.PIPELINE, Stage.PPO):
        joined, unread = data_notices(build_recipe(stage, KEYS[stage] | {"dataset_name": str(path)}))
        assert joined.startswith("rows.jsonl: the prompt is question and input")
        assert unread.startswith("rows.jsonl: the model does not see the text in note")
    assert data_notices(build_recipe(Stage.SFT, KEYS[Stage.SFT] | {"dataset_name": "demo"})) == []
    assert data_notices(build_recipe(Stage.SFT, KEYS[Stage.SFT] | {"dataset_name": "owner/set"})) == []


def test_parquet_is_left_to_the_stage_where_it_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(data_check.importlib.util, "find_spec", lambda _: None)
    check(tmp_path, Stage.SFT, "rows.parquet")
    monkeypatch.undo()
    with pytest.raises(UsageError, match="not a Parquet file"):
        check(tmp_path, Stage.SFT, "rows.parquet")
