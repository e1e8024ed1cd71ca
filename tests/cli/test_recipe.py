"""`recipe convert`, and how a recipe's notes and mistakes reach the person who launches it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

THEIRS = "stage: sft\nmodel_name_or_path: demo\nfinetuning_type: lora\ntemplate: llama3\ncutoff_len: 64\n"
DEMO = ("model_name_or_path=demo", "dataset_name=demo", "load_in_8bit=false")


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    file = tmp_path / "theirs.yaml"
    file.write_text(THEIRS)
    return file


def test_convert_prints_the_recipe_and_says_what_is_left_out(run_main: Callable[..., Any], theirs: Path) -> None:
    result = run_main("recipe", "convert", str(theirs))
    assert result.code == 0
    assert result.out.startswith("# stage: sft\n") and "\nmax_length: 64\n" in result.out
    assert "`template=llama3`" in result.err and "`template=llama3`" in result.out


def test_convert_never_replaces_a_file_unasked(run_main: Callable[..., Any], theirs: Path, tmp_path: Path) -> None:
    out = tmp_path / "ours.yaml"
    assert run_main("recipe", "convert", str(theirs), "--out", str(out)).code == 0
    before = out.read_text()
    out.write_text("mine")
    refused = run_main("recipe", "convert", str(theirs), "--out", str(out))
    assert refused.code == 2 and "exists already" in refused.err and out.read_text() == "mine"
    replaced = run_main("recipe", "convert", str(theirs), "--out", str(out), "--force")
    assert replaced.code == 0 and "Replacing" in replaced.err and out.read_text() == before
    assert run_main("recipe", "convert", str(theirs), "--out", str(tmp_path / "no" / "x")).code == 2


def test_convert_as_json(run_main: Callable[..., Any], theirs: Path) -> None:
    document = run_main("recipe", "convert", str(theirs), "--json").json()
    assert (document["source"], document["stage"], document["recipe"]["max_length"]) == ("LLaMA-Factory", "sft", 64)
    assert any("template" in text for text in document["left_out"])


def test_notes_reach_stderr_and_json(run_main: Callable[..., Any]) -> None:
    for command in (("launch", "sft", *DEMO, "output_dir=x", "--dry-run"), ("plan", "sft", *DEMO, "output_dir=x")):
        result = run_main(*command)
        assert result.code == 0 and "note: command line: ignored `output_dir`" in result.err
        assert "ignored `output_dir`" in run_main(*command, "--json").json()["notes"][0]


def test_several_mistakes_are_a_line_each(run_main: Callable[..., Any]) -> None:
    result = run_main("launch", "sft", *DEMO, "lorar=1", "learning_rate=abc", "nokey=\x1b[2J")
    assert (result.code, result.out) == (2, "")
    lines = result.err.splitlines()
    assert lines[0] == "stackllama-console: command line: 3 mistakes:" and len(lines) == 4
    assert "  `learning_rate=abc`: expected a number." in lines and "\x1b" not in result.err
